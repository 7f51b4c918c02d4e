"""The bytes of a blob or manifest from a registry, as a stream that survives broken connections.

A connection that breaks is resumed by Range where it stopped; the caller sees one stream of at most the descriptor's
size. A large blob whose connection is slow is read in several ranges at once (`ahead.py`).
What the bytes are is checked where they are stored: by the content store, against the descriptor's digest.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError, DataLoss, NotFound, Unavailable
from carina.images import manifest
from carina.reference import Reference
from imaged.ahead import Ahead, Span
from imaged.failures import FAILURES, broken
from imaged.hosts import Host, is_url
from imaged.patience import Retry, Transient, pause
from imaged.registry import Repository

PROGRESS: Final = 64 * 1024
"""Bytes after which a connection counts as one that got somewhere, so that attempts are counted anew."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast content is to come."""

    piece: int = 0
    """Bytes of one range of several that are read at once; 0: one connection for each blob."""
    floor: float = 0.0
    """Bytes a second; a connection below it for as long as one may stall is given up."""


class Fetcher:
    """Content of one repository. `slots` are the connections that there may be, as far as they are shared."""

    def __init__(
        self, repository: Repository, *, pace: Pace | None = None, slots: asyncio.Semaphore | None = None
    ) -> None:
        self.repository = repository
        self._pace = pace or Pace()
        self._slots = slots
        self._used: dict[Digest, list[str]] = {}
        """Hosts that gave bytes of content, as they were last read."""
        self._wrong: dict[Digest, set[str]] = {}

    @property
    def reference(self) -> Reference:
        return self.repository.reference

    @property
    def name(self) -> str:
        """How errors name where the bytes come from."""
        reference = self.repository.reference
        return f"registry {reference.domain}, repository {reference.repository}"

    async def read(self, descriptor: Descriptor) -> bytes:
        """A whole document, which the caller has found small enough."""
        data = bytearray()
        async with aclosing(self.stream(descriptor)) as chunks:
            async for chunk in chunks:
                data += chunk
        return bytes(data)

    async def stream(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on.

        Raises:
            NotFound: no host has it.
            DataLoss: the registry has fewer bytes, or more, than the descriptor says.
            Unavailable, Unauthenticated, PermissionDenied, ResourceExhausted: what the last host says.
        """
        hosts = self._trusted(descriptor)
        used = self._used[descriptor.digest] = []
        last: CarinaError | None = None
        for host in hosts:
            try:
                async with aclosing(self._from(_Place(host=host), hosts, descriptor, offset)) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        if host.base not in used:
                            used.append(host.base)
                        yield chunk
                return
            except NotFound as error:
                last = error
                if not descriptor.urls:
                    self.repository.failed(host, hosts, error)
            except CarinaError as error:
                self.repository.failed(host, hosts, error)
        for place in self._elsewhere(descriptor):
            try:
                async with aclosing(self._from(place, [place.host], descriptor, offset)) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        yield chunk
                return
            except CarinaError as error:
                last = error
        assert last is not None
        raise last

    def distrust(self, descriptor: Descriptor) -> bool:
        used = self._used.get(descriptor.digest)
        if not used:
            return False
        self._wrong.setdefault(descriptor.digest, set()).add(used[0])
        _log.warning("%s: %s gives wrong bytes", self._name(descriptor), used[0])
        return bool(self._trusted(descriptor))

    def _trusted(self, descriptor: Descriptor) -> list[Host]:
        wrong = self._wrong.get(descriptor.digest, set())
        return [host for host in self.repository.able("pull") if host.base not in wrong]

    def _elsewhere(self, descriptor: Descriptor) -> list["_Place"]:
        """The places that a manifest names itself. They get no credentials, and are no worse than the registry."""
        plain = any(host.scheme == "http" for host in self.repository.hosts)
        found = []
        for url in descriptor.urls:
            parts = urlsplit(url) if is_url(url) else None
            if parts and (plain or parts.scheme == "https"):
                found.append(_Place(host=Host(scheme=parts.scheme, authority=parts.netloc, path=""), url=url))
        return found

    def _from(
        self, place: "_Place", hosts: list[Host], descriptor: Descriptor, offset: int
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on from one place."""
        retry = self.repository.patience(place.host, hosts)
        whole = Span(start=offset, end=descriptor.size)
        size = self._pace.piece
        if not size or self._slots is None or whole.end - whole.start < 2 * size or _is_document(descriptor):
            return self._resuming(place, retry, descriptor, whole)
        ahead = Ahead(lambda span: self._resuming(place, retry, descriptor, span), whole, size=size, slots=self._slots)
        return ahead.chunks()

    async def _resuming(
        self, place: "_Place", retry: Retry, descriptor: Descriptor, span: Span
    ) -> AsyncGenerator[bytes, None]:
        attempt, offset = 0, span.start
        while offset < span.end or (attempt == 0 and descriptor.size == 0):
            attempt += 1
            start = offset
            try:
                async with aclosing(self._once(place, descriptor, span, offset)) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        if offset > descriptor.size:
                            raise DataLoss(f"{self._name(descriptor)} has more than its {descriptor.size} bytes")
                        yield chunk
                if offset < span.end:
                    raise Transient(f"{self._name(descriptor)} ends after {offset} of {descriptor.size} bytes")
            except Transient as error:
                if offset - start >= PROGRESS:
                    attempt = 1
                await pause(retry, attempt, error)

    async def _once(
        self, place: "_Place", descriptor: Descriptor, span: Span, offset: int
    ) -> AsyncGenerator[bytes, None]:
        """One connection's worth of bytes of `span`, from `offset` on."""
        kind, host = ("manifests" if _is_document(descriptor) else "blobs"), place.host
        headers = {"Accept": f"{descriptor.media_type}, */*"}
        last = f"{span.end - 1}" if span.end < descriptor.size else ""
        if offset or last:
            headers["Range"] = f"bytes={offset}-{last}"
        what = f"{kind.removesuffix('s')} {descriptor.digest}"
        url = place.url or self.repository.url(host, kind, descriptor.digest)
        request = self.repository.request(host, url, what=what, headers=headers, foreign=bool(place.url))
        async with request as response:
            if kind == "manifests":
                self._check_type(response, descriptor)
            skip = self._skip(response, offset, descriptor)
            if response.status == 206:
                place.ranges = True
            elif not place.ranges and offset == span.start:
                span.end = descriptor.size  # all of it comes, so all of it is taken
            async with aclosing(self._received(response, descriptor)) as chunks:
                async for chunk in chunks:
                    if skip >= len(chunk):
                        skip -= len(chunk)
                        continue
                    rest = chunk[skip:] if skip else chunk
                    skip = 0
                    if span.end < descriptor.size and offset + len(rest) >= span.end:
                        yield rest[: span.end - offset]
                        return
                    offset += len(rest)
                    yield rest

    async def _received(self, response: aiohttp.ClientResponse, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
        """The bytes of an answer as they arrive, unless they drip."""
        stall = self.repository.session.timeout.sock_read or 60.0
        waited, received = 0.0, 0
        chunks = response.content.iter_any()
        while True:
            began = time.monotonic()
            try:
                chunk = await anext(chunks, b"")
            except FAILURES as error:
                raise Transient(f"{self._name(descriptor)} can't be read to its end: {broken(error)}") from error
            if not chunk:
                return
            waited, received = waited + time.monotonic() - began, received + len(chunk)
            if waited >= stall:
                if received < self._pace.floor * waited:
                    rate = f"{received / waited:.0f} bytes a second arrive, fewer than {self._pace.floor:.0f}"
                    raise Transient(f"{self._name(descriptor)} can't be read to its end: {rate}")
                waited, received = 0.0, 0
            yield chunk

    def _skip(self, response: aiohttp.ClientResponse, offset: int, descriptor: Descriptor) -> int:
        """How many bytes of the answer come before `offset`: none where the registry heeds Range, else all of them."""
        if response.status != 206:
            return offset
        stated = response.headers.get("Content-Range", "").removeprefix("bytes ")
        span, _, total = stated.partition("/")
        if span.partition("-")[0] != str(offset):
            raise Unavailable(f"{self._name(descriptor)}: asked from byte {offset} on, the registry sends other bytes")
        if total.isdigit() and total != str(descriptor.size):
            raise DataLoss(
                f"{self._name(descriptor)} has {total[:20]} bytes there, its descriptor says {descriptor.size}"
            )
        return 0

    def _check_type(self, response: aiohttp.ClientResponse, descriptor: Descriptor) -> None:
        stated = response.headers.get("Content-Type", "").partition(";")[0].strip()
        generic = ("", "application/json", "application/octet-stream", "text/plain")
        if stated not in generic and stated != descriptor.media_type:
            raise DataLoss(
                f"{self._name(descriptor)} is served as {stated[:100]!r},"
                f" its descriptor says {descriptor.media_type[:100]!r}"
            )

    def _name(self, descriptor: Descriptor) -> str:
        return f"content {descriptor.digest} from {self.name}"


@dataclass(slots=True, kw_only=True)
class _Place:
    """Where one blob is read from."""

    host: Host
    url: str = ""
    """All of it, where it is not the registry's."""
    ranges: bool = False
    """Whether it heeds Range."""


def _is_document(descriptor: Descriptor) -> bool:
    return manifest.is_index(descriptor.media_type) or manifest.is_manifest(descriptor.media_type)
