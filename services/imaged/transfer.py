"""The Transfer service's work: which use case a source and a destination make, and what it is given."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from carina import context
from carina.aio.threads import in_thread
from carina.descriptor import Descriptor
from carina.errors import PermissionDenied
from carina.leases import Resource
from carina.platforms import Platform
from carina.reference import Reference
from carina.transfer import ANONYMOUS, Access, OnProgress, Referrer, Store, Transfer
from imaged.archive import load
from imaged.auth import Authorizer
from imaged.export import save
from imaged.hostsdir import hosts
from imaged.ingest import CALL_SECONDS
from imaged.patience import Retry
from imaged.progress import Tracker
from imaged.proxies import Proxies
from imaged.pull import Stores, lease, names, pull, record
from imaged.push import push
from imaged.registry import Repository
from imaged.resolver import RegistryResolver
from imaged.sources import Resolver

MAX_HEADERS: Final = 64
_FORBIDDEN_HEADERS: Final = frozenset(
    ("authorization", "host", "content-length", "transfer-encoding", "range", "accept")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits on waiting for a registry, in seconds."""

    connect: float = 15.0
    stall: float = 60.0
    """How long no byte may arrive."""


class Transfers(Transfer):
    """`carina.transfer.Transfer` on the stores that this process was given."""

    def __init__(
        self,
        stores: Stores,
        *,
        config_path: Path | None = None,
        retry: Retry | None = None,
        timeouts: Timeouts | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self.stores = stores
        self._config_path = config_path
        self._retry = retry or Retry()
        self._timeouts = timeouts or Timeouts()
        self._proxies = proxies or Proxies()

    async def fetch(
        self, reference: str, into: Store, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        parsed = Reference.parse(reference)
        tracker = Tracker(into.name or reference, on_progress)
        with context.no_deadline():
            async with self._repository(parsed, access) as repository:
                await pull(self.stores, RegistryResolver(repository, self.stores.pace), into, tracker=tracker)

    async def fetch_from(self, resolver: Resolver, into: Store, *, on_progress: OnProgress | None = None) -> None:
        """As `fetch`, from anywhere."""
        with context.no_deadline():
            await pull(self.stores, resolver, into, tracker=Tracker(into.name, on_progress))

    async def push(
        self, source: Store, reference: str, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        parsed = Reference.parse(reference)
        tracker = Tracker(source.name, on_progress)
        with context.no_deadline():
            async with self._repository(parsed, access, actions="pull,push") as repository:
                await push(self.stores, RegistryResolver(repository, self.stores.pace), source, tracker=tracker)

    async def referrers(
        self, reference: str, *, artifact_type: str = "", access: Access = ANONYMOUS
    ) -> tuple[Descriptor, Sequence[Referrer]]:
        parsed = Reference.parse(reference)
        async with self._repository(parsed, access) as repository:
            resolver = RegistryResolver(repository)
            subject = await resolver.resolve()
            found = await resolver.referrers(subject.digest, artifact_type)
        return subject, [Referrer(descriptor=one.descriptor, artifact_type=one.artifact_type) for one in found]

    async def tag(self, name: str, into: Store) -> None:
        async with lease(self.stores.leases) as held:
            with context.deadline(CALL_SECONDS):
                image = await self.stores.images.get(name)
                if held and self.stores.leases is not None:
                    # Held before its presence is looked at: the source may be removed meanwhile.
                    await self.stores.leases.add_resource(held, Resource(type="content", id=image.target.digest))
                await self.stores.content.info(image.target.digest)
            await record(self.stores.images, image.target, names(into, image.target), into.labels)

    async def load(
        self,
        archive: AsyncIterator[bytes],
        into: Store,
        *,
        compress: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        with context.no_deadline():
            await load(self.stores, archive, into, compress=compress, tracker=Tracker(into.name, on_progress))

    async def save(
        self,
        source: Store,
        *,
        platforms: Sequence[Platform] = (),
        docker: bool = True,
        foreign: bool = True,
        on_progress: OnProgress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        tracker = Tracker(source.name, on_progress)
        async with aclosing(
            save(self.stores, source, platforms, docker=docker, foreign=foreign, tracker=tracker)
        ) as chunks:
            async for chunk in chunks:
                yield chunk

    @contextlib.asynccontextmanager
    async def _repository(
        self, reference: Reference, access: Access, *, actions: str = "pull"
    ) -> AsyncIterator[Repository]:
        """A repository to talk to, with a session of its own: nothing that one caller is allowed leaks to another."""
        for name in access.headers:
            if name.lower() in _FORBIDDEN_HEADERS or len(access.headers) > MAX_HEADERS:
                raise PermissionDenied(f"registry {reference.domain}: header {name[:60]!r} can't be set by the caller")
        directory = Path(access.host_dir) if access.host_dir else self._config_path
        scheme = "http" if access.plain_http else access.scheme
        found = await in_thread(lambda: hosts(reference.domain, directory=directory, scheme=scheme))
        timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=self._timeouts.connect, sock_read=self._timeouts.stall
        )
        async with aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=max(self.stores.downloads, self.stores.uploads) + 2),
            read_bufsize=1 << 20,
            headers={"User-Agent": "carina/0.1"},
            max_line_size=16384,
            max_field_size=16384,
        ) as session:
            yield Repository(
                reference=reference,
                hosts=tuple(found),
                session=session,
                authorizer=Authorizer(session, access.credentials, proxies=self._proxies),
                proxies=self._proxies,
                headers=access.headers,
                retry=self._retry,
                actions=actions,
            )
