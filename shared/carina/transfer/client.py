"""`Transfer` over a channel: the Transfer service, with a stream beside it for progress, credentials and archives."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, Final

import betterproto2
from grpclib.const import Cardinality

from carina import context
from carina.api.carina.images.v1 import ListReferrersRequest, ReferrersStub
from carina.api.containerd.services.streaming.v1 import StreamInit
from carina.api.containerd.services.transfer.v1 import TransferOptions, TransferRequest, TransferStub
from carina.api.containerd.types import Descriptor as WireDescriptor
from carina.api.containerd.types import Platform as WirePlatform
from carina.api.containerd.types import transfer as wire
from carina.api.google.protobuf import Any as WireAny
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError, Unavailable
from carina.platforms import Platform
from carina.rpc.client import Channel
from carina.rpc.codec import decode, encode
from carina.transfer import (
    ANONYMOUS,
    OCI_ARCHIVE,
    Access,
    CredentialSource,
    OnProgress,
    Progress,
    Referrer,
    Store,
    Transfer,
)
from carina.transfer.server import receive, send
from carina.transfer.streams import Item, Stream

STREAM: Final = "/containerd.services.streaming.v1.Streaming/Stream"
OPEN_SECONDS: Final = 30.0
STALL_SECONDS: Final = 900.0
"""How long a transfer may show no progress before it is given up."""
DRAIN_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


class RemoteTransfer(Transfer):
    """Transfers made by whoever serves at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._transfer = TransferStub(channel)
        self._referrers = ReferrersStub(channel)

    async def fetch(
        self, reference: str, into: Store, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        async with self._registry(reference, access) as registry:
            await self._call(_any("OCIRegistry", registry), _any("ImageStore", _store(into)), on_progress)

    async def push(
        self, source: Store, reference: str, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        async with self._registry(reference, access) as registry:
            await self._call(_any("ImageStore", _store(source)), _any("OCIRegistry", registry), on_progress)

    async def referrers(
        self, reference: str, *, artifact_type: str = "", access: Access = ANONYMOUS
    ) -> tuple[Descriptor, Sequence[Referrer]]:
        async with self._registry(reference, access) as registry:
            request = ListReferrersRequest(registry=registry, artifact_type=artifact_type)
            with context.deadline(STALL_SECONDS):
                answer = await self._referrers.list(request)
        found = [
            Referrer(descriptor=_descriptor(one.descriptor), artifact_type=one.artifact_type)
            for one in answer.referrers
        ]
        return _descriptor(answer.subject), found

    async def tag(self, name: str, into: Store) -> None:
        source = _any("ImageStore", wire.ImageStore(name=name))
        await self._call(source, _any("ImageStore", _store(into)), None)

    async def load(
        self,
        archive: AsyncIterator[bytes],
        into: Store,
        *,
        compress: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        async with self._stream("import") as stream:
            source = wire.ImageImportStream(stream=stream.id, force_compress=compress)
            async with _beside(send(archive, stream), "import"):
                await self._call(_any("ImageImportStream", source), _any("ImageStore", _store(into)), on_progress)

    async def save(
        self,
        source: Store,
        *,
        platforms: Sequence[Platform] = (),
        docker: bool = True,
        foreign: bool = True,
        on_progress: OnProgress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        async with self._stream("export") as stream:
            destination = wire.ImageExportStream(
                stream=stream.id,
                media_type=OCI_ARCHIVE,
                platforms=[_platform(one) for one in platforms],
                all_platforms=not platforms,
                skip_compatibility_manifest=not docker,
                skip_non_distributable=not foreign,
            )
            call = self._call(_any("ImageStore", _store(source)), _any("ImageExportStream", destination), on_progress)
            saving = asyncio.create_task(call, name="export")
            try:
                async with contextlib.aclosing(receive(stream)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                await saving
            finally:
                saving.cancel()
                await asyncio.wait([saving])

    @contextlib.asynccontextmanager
    async def _registry(self, reference: str, access: Access) -> AsyncIterator[wire.OciRegistry]:
        """A registry as an end of a transfer, with a stream beside it that gives credentials."""
        async with contextlib.AsyncExitStack() as stack:
            resolver = wire.RegistryResolver(
                headers=dict(access.headers),
                host_dir=access.host_dir,
                default_scheme="http" if access.plain_http else access.scheme,
            )
            if access.credentials:
                stream = await stack.enter_async_context(self._stream("creds"))
                resolver.auth_stream = stream.id
                await stack.enter_async_context(_beside(_answer(stream, access.credentials), "credentials"))
            yield wire.OciRegistry(reference=reference, resolver=resolver)

    async def _call(self, source: WireAny, destination: WireAny, on_progress: OnProgress | None) -> None:
        request = TransferRequest(source=source, destination=destination)
        with context.no_deadline():
            if on_progress is None:
                await self._transfer.transfer(request)
                return
            async with self._stream("progress") as stream:
                request.options = TransferOptions(progress_stream=stream.id)
                seen = _Seen()
                async with _beside(_listen(stream, on_progress, seen), "progress") as listening:
                    await seen.guard(self._transfer.transfer(request))
                    await asyncio.wait([listening], timeout=DRAIN_SECONDS)

    @contextlib.asynccontextmanager
    async def _stream(self, purpose: str) -> AsyncIterator[Stream]:
        """A stream that the service knows by its id, for the time of the block."""
        stream = Stream(f"{purpose}-{secrets.token_hex(8)}")
        opened = asyncio.Event()
        async with _beside(self._carry(stream, opened), f"stream {stream.id}") as carrying:
            waiting = asyncio.create_task(opened.wait(), name="stream opening")
            try:
                await asyncio.wait([waiting, carrying], timeout=OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if carrying.done():
                await carrying
            if not opened.is_set():
                raise Unavailable(f"stream {stream.id}: the service does not answer")
            yield stream
            stream.outgoing.close()

    async def _carry(self, stream: Stream, opened: asyncio.Event) -> None:
        """Move messages in both directions until the service ends the stream."""
        with context.no_deadline():
            call = self._channel.request(STREAM, Cardinality.STREAM_STREAM, WireAny, WireAny)
        try:
            async with call:
                init = encode(StreamInit(id=stream.id))
                await call.send_message(WireAny(type_url="containerd.services.streaming.v1.StreamInit", value=init))
                if await call.recv_message() is None:
                    raise Unavailable(f"stream {stream.id}: the service does not take it")
                opened.set()
                async with _beside(_send(call, stream), f"send {stream.id}"):
                    while (message := await call.recv_message()) is not None:
                        await stream.incoming.put(Item(message.type_url, message.value))
        finally:
            stream.close()


async def _send(call: Any, stream: Stream) -> None:
    with contextlib.suppress(CarinaError):  # the receiving side tells
        while (one := await stream.outgoing.get()) is not None:
            await call.send_message(WireAny(type_url=one.type_url, value=one.value))
        await call.end()


class _Seen:
    """Notices that a transfer shows no progress any more."""

    def __init__(self) -> None:
        self._timeout: asyncio.Timeout | None = None

    def mark(self) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + STALL_SECONDS)

    async def guard(self, call: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(STALL_SECONDS) as self._timeout:
                await call
        except TimeoutError as error:
            raise Unavailable(f"the transfer shows no progress for {STALL_SECONDS:.0f} s") from error
        finally:
            self._timeout = None


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator["asyncio.Task[None]"]:
    """Run something beside the block and end it with the block; the block's own failure is what is raised."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


async def _listen(stream: Stream, on_progress: OnProgress, seen: _Seen) -> None:
    while (one := await stream.incoming.get()) is not None:
        if one.type == "containerd.types.transfer.Progress":
            seen.mark()
            on_progress(_progress(decode(wire.Progress, one.value)))


async def _answer(stream: Stream, credentials: CredentialSource) -> None:
    while (one := await stream.incoming.get()) is not None:
        request = decode(wire.AuthRequest, one.value)
        try:
            found = await credentials(request.host, list(request.wwwauthenticate))
        except CarinaError as error:
            # The service is told that there are none: its refusal is what the caller gets, this says why.
            _log.warning("no credentials for %s: %s", request.host, error)
            found = None
        response = wire.AuthResponse()
        if found and found.header:
            response = wire.AuthResponse(auth_type=wire.AuthType.HEADER, secret=found.header)
        elif found and found.username:
            response = wire.AuthResponse(
                auth_type=wire.AuthType.CREDENTIALS, username=found.username, secret=found.secret
            )
        elif found:
            response = wire.AuthResponse(auth_type=wire.AuthType.REFRESH, secret=found.secret)
        await stream.outgoing.put(Item("containerd.types.transfer.AuthResponse", encode(response)))


def _any(name: str, message: betterproto2.Message) -> WireAny:
    return WireAny(type_url=f"containerd.types.transfer.{name}", value=encode(message))


def _store(store: Store) -> wire.ImageStore:
    return wire.ImageStore(
        name=store.name,
        labels=dict(store.labels),
        platforms=[_platform(one) for one in store.platforms],
        all_metadata=store.all_metadata,
        manifest_limit=store.manifest_limit,
        extra_references=[
            wire.ImageReference(
                name=one.name,
                is_prefix=one.is_prefix,
                allow_overwrite=one.allow_overwrite,
                add_digest=one.add_digest,
                skip_named_digest=one.skip_named_digest,
            )
            for one in store.extra_references
        ],
        unpacks=[
            wire.UnpackConfiguration(
                platform=_platform(one.platform) if one.platform else None, snapshotter=one.snapshotter
            )
            for one in store.unpacks
        ],
    )


def _platform(platform: Platform) -> WirePlatform:
    return WirePlatform(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
        os_features=list(platform.os_features),
    )


def _descriptor(message: WireDescriptor | None) -> Descriptor:
    message = message or WireDescriptor()
    return Descriptor(
        media_type=message.media_type,
        digest=Digest(message.digest),
        size=message.size,
        annotations=dict(message.annotations),
    )


def _progress(message: wire.Progress) -> Progress:
    return Progress(
        event=message.event,
        name=message.name,
        parents=tuple(message.parents),
        progress=message.progress,
        total=message.total,
        descriptor=_descriptor(message.desc) if message.desc is not None and message.desc.digest else None,
    )
