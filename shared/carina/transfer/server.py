"""The Transfer and Streaming services on top of a `Transfer`: which pair of ends makes which use case."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import betterproto2
import grpclib.server
from grpclib.const import Cardinality, Handler

from carina import context
from carina.api.carina.images.v1 import ListReferrersRequest, ListReferrersResponse, ReferrersBase
from carina.api.carina.images.v1 import Referrer as WireReferrer
from carina.api.containerd.services.streaming.v1 import StreamingBase, StreamInit
from carina.api.containerd.services.transfer.v1 import TransferBase, TransferRequest
from carina.api.containerd.types import Descriptor as WireDescriptor
from carina.api.containerd.types import Platform as WirePlatform
from carina.api.containerd.types import transfer as wire
from carina.api.google.protobuf import Any as WireAny
from carina.api.google.protobuf import Empty
from carina.descriptor import Descriptor
from carina.errors import DeadlineExceeded, InvalidArgument, Unimplemented
from carina.platforms import Platform, host
from carina.rpc.codec import decode, encode
from carina.rpc.streams import Terminated
from carina.transfer import (
    OCI_ARCHIVE,
    Access,
    Credentials,
    CredentialSource,
    ExtraReference,
    OnProgress,
    Progress,
    Store,
    Transfer,
    Unpack,
)
from carina.transfer.streams import Item, Stream, Streams

AUTH_SECONDS: Final = 60.0
FLUSH_SECONDS: Final = 10.0
WINDOW: Final = 1 << 20
"""Bytes of an archive that a sender may have under way."""
CHUNK: Final = 256 * 1024
"""Bytes of one message of an archive at the most; containerd's clients open their windows for 64 KiB at a time."""
STALL_SECONDS: Final = 300.0


class TransferService(TransferBase):
    """Serves a `Transfer`; the streams that calls name are looked up in `streams`."""

    def __init__(self, transfer: Transfer, streams: Streams) -> None:
        self._transfer = transfer
        self._streams = streams

    async def transfer(self, message: TransferRequest) -> Empty:
        namespace = context.namespace()
        progress_stream = message.options.progress_stream if message.options else ""
        if not progress_stream:
            await self._run(message, namespace, None)
            return Empty()
        stream = self._streams.get(namespace, progress_stream)

        def on_progress(progress: Progress) -> None:
            stream.outgoing.offer(_item("Progress", _progress(progress)))

        try:
            await self._run(message, namespace, on_progress)
        finally:
            await _flush(stream)
        return Empty()

    async def _run(self, message: TransferRequest, namespace: str, on_progress: OnProgress | None) -> None:
        source, destination = message.source or WireAny(), message.destination or WireAny()
        match _kind(source), _kind(destination):
            case "OCIRegistry", "ImageStore":
                registry = decode(wire.OciRegistry, source.value)
                into = _store(decode(wire.ImageStore, destination.value))
                access = _access(registry, self._streams, namespace)
                await self._transfer.fetch(registry.reference, into, access=access, on_progress=on_progress)
            case "ImageStore", "OCIRegistry":
                registry = decode(wire.OciRegistry, destination.value)
                stored = _store(decode(wire.ImageStore, source.value))
                access = _access(registry, self._streams, namespace)
                await self._transfer.push(stored, registry.reference, access=access, on_progress=on_progress)
            case "ImageStore", "ImageStore":
                name = decode(wire.ImageStore, source.value).name
                await self._transfer.tag(name, _store(decode(wire.ImageStore, destination.value)))
            case "ImageImportStream", "ImageStore":
                await self._load(source, destination, namespace, on_progress)
            case "ImageStore", "ImageExportStream":
                await self._save(source, destination, namespace, on_progress)
            case "ImageImportStream", "ImageExportStream":
                # What containerd's clients try a connection with: the bytes go back as they came.
                end = self._streams.get(namespace, decode(wire.ImageImportStream, source.value).stream)
                back = self._streams.get(namespace, decode(wire.ImageExportStream, destination.value).stream)
                async with contextlib.aclosing(receive(end)) as archive:
                    await send(archive, back)
            case kinds:
                raise Unimplemented(f"transferring from {kinds[0] or 'nothing'} to {kinds[1] or 'nothing'}")

    async def _load(
        self, source: WireAny, destination: WireAny, namespace: str, on_progress: OnProgress | None
    ) -> None:
        archive = decode(wire.ImageImportStream, source.value)
        into = _store(decode(wire.ImageStore, destination.value))
        async with contextlib.aclosing(receive(self._streams.get(namespace, archive.stream))) as chunks:
            await self._transfer.load(chunks, into, compress=archive.force_compress, on_progress=on_progress)

    async def _save(
        self, source: WireAny, destination: WireAny, namespace: str, on_progress: OnProgress | None
    ) -> None:
        export = decode(wire.ImageExportStream, destination.value)
        if export.media_type not in ("", OCI_ARCHIVE):
            raise Unimplemented(f"exporting images as {export.media_type[:100]!r}")
        platforms = [] if export.all_platforms else [_platform(one) for one in export.platforms] or [host()]
        saved = self._transfer.save(
            _store(decode(wire.ImageStore, source.value)),
            platforms=platforms,
            docker=not export.skip_compatibility_manifest,
            foreign=not export.skip_non_distributable,
            on_progress=on_progress,
        )
        await send(saved, self._streams.get(namespace, export.stream))


class ReferrersService(ReferrersBase):
    """Serves a `Transfer`'s referrers; credentials come over a stream, as for its transfers."""

    def __init__(self, transfer: Transfer, streams: Streams) -> None:
        self._transfer = transfer
        self._streams = streams

    async def list(self, message: ListReferrersRequest) -> ListReferrersResponse:
        if message.registry is None:
            raise InvalidArgument("no registry is named")
        access = _access(message.registry, self._streams, context.namespace())
        subject, found = await self._transfer.referrers(
            message.registry.reference, artifact_type=message.artifact_type, access=access
        )
        return ListReferrersResponse(
            subject=_descriptor(subject),
            referrers=[
                WireReferrer(descriptor=_descriptor(one.descriptor), artifact_type=one.artifact_type) for one in found
            ],
        )


class StreamingService(StreamingBase):
    """Registers the streams that clients open, and moves messages until either side is done."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def __mapping__(self) -> dict[str, Handler]:
        # Both directions at once, which the generated base can't do without leaving a generator suspended.
        route = "/containerd.services.streaming.v1.Streaming/Stream"
        return {route: Handler(self._serve, Cardinality.STREAM_STREAM, WireAny, WireAny)}

    async def _serve(self, wire_stream: "grpclib.server.Stream[WireAny, WireAny]") -> None:
        first = await wire_stream.recv_message()
        if first is None or _kind(first) != "StreamInit":
            raise InvalidArgument("the first message of a stream must be a StreamInit")
        id = decode(StreamInit, first.value).id
        with self._streams.register(context.namespace(), id) as stream:
            await wire_stream.send_message(WireAny(type_url="google.protobuf.Empty", value=b""))
            try:
                async with asyncio.TaskGroup() as group:
                    reader = group.create_task(self._read(wire_stream, stream), name=f"stream {id}")
                    while (one := await stream.outgoing.get()) is not None:
                        await wire_stream.send_message(WireAny(type_url=one.type_url, value=one.value))
                    reader.cancel()
            except* Terminated:
                pass  # the client left

    async def _read(self, wire_stream: "grpclib.server.Stream[WireAny, WireAny]", stream: Stream) -> None:
        try:
            while (message := await wire_stream.recv_message()) is not None:
                await stream.incoming.put(Item(message.type_url, message.value))
        finally:
            stream.incoming.close()


async def receive(stream: Stream) -> AsyncGenerator[bytes, None]:
    """The bytes that a client sends over a stream, as fast as they are taken."""
    window = 0
    try:
        while True:
            if window < WINDOW // 2:
                update = wire.WindowUpdate(update=WINDOW)
                if stream.outgoing.offer(_item("WindowUpdate", update)):
                    window += WINDOW
            async with _stall(stream):
                one = await stream.incoming.get()
            if one is None:
                return
            if one.type == "containerd.types.transfer.Data":
                data = decode(wire.Data, one.value).data
                window -= len(data)
                yield data
    finally:
        stream.outgoing.close()


async def send(chunks: AsyncIterator[bytes], stream: Stream) -> None:
    """Send bytes over a stream, as far as its client opens the window."""
    window = 0
    try:
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                while window <= 0:
                    async with _stall(stream):
                        one = await stream.incoming.get()
                    if one is None:
                        raise InvalidArgument(f"stream {stream.id} was closed before all was sent")
                    if one.type == "containerd.types.transfer.WindowUpdate":
                        window += max(0, decode(wire.WindowUpdate, one.value).update)
                part = bytes(view[: min(CHUNK, window)])
                view = view[len(part) :]
                window -= len(part)
                await stream.outgoing.put(_item("Data", wire.Data(data=part)))
    finally:
        await _flush(stream)


async def _flush(stream: Stream) -> None:
    """Let what was said reach the client before the call ends, if it still listens."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FLUSH_SECONDS):
            await stream.outgoing.drained()
    stream.outgoing.close()


@contextlib.asynccontextmanager
async def _stall(stream: Stream) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(STALL_SECONDS):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"stream {stream.id}: nothing came for {STALL_SECONDS:.0f} s") from error


def _access(registry: wire.OciRegistry, streams: Streams, namespace: str) -> Access:
    resolver = registry.resolver
    if resolver is None:
        return Access()
    credentials = None
    if resolver.auth_stream:
        credentials = _asks(streams.get(namespace, resolver.auth_stream), registry.reference)
    return Access(
        scheme=resolver.default_scheme,
        headers=dict(resolver.headers),
        host_dir=resolver.host_dir,
        credentials=credentials,
    )


def _asks(stream: Stream, reference: str) -> CredentialSource:
    """Credentials from the client, over the stream that it opened for that."""
    lock = asyncio.Lock()

    async def ask(host: str, challenges: list[str]) -> Credentials | None:
        request = wire.AuthRequest(host=host, reference=reference, wwwauthenticate=challenges)
        try:
            async with lock, asyncio.timeout(AUTH_SECONDS):
                await stream.outgoing.put(_item("AuthRequest", request))
                answer = await stream.incoming.get()
        except TimeoutError as error:
            raise DeadlineExceeded(f"stream {stream.id}: the client sends no credentials for {host}") from error
        if answer is None:
            return None
        response = decode(wire.AuthResponse, answer.value)
        match response.auth_type:
            case wire.AuthType.CREDENTIALS:
                return Credentials(username=response.username, secret=response.secret)
            case wire.AuthType.REFRESH:
                return Credentials(secret=response.secret)
            case wire.AuthType.HEADER:
                return Credentials(header=response.secret)
            case _:
                return None

    return ask


def _kind(value: WireAny) -> str:
    """The last part of a type's name."""
    return value.type_url.rpartition("/")[2].rpartition(".")[2]


def _store(message: wire.ImageStore) -> Store:
    return Store(
        name=message.name,
        labels=dict(message.labels),
        platforms=tuple(_platform(one) for one in message.platforms),
        all_metadata=message.all_metadata,
        manifest_limit=message.manifest_limit,
        extra_references=tuple(
            ExtraReference(
                name=one.name,
                is_prefix=one.is_prefix,
                allow_overwrite=one.allow_overwrite,
                add_digest=one.add_digest,
                skip_named_digest=one.skip_named_digest,
            )
            for one in message.extra_references
        ),
        unpacks=tuple(
            Unpack(platform=_platform(one.platform) if one.platform else None, snapshotter=one.snapshotter)
            for one in message.unpacks
        ),
    )


def _platform(message: WirePlatform) -> Platform:
    return Platform(
        os=message.os,
        architecture=message.architecture,
        variant=message.variant,
        os_version=message.os_version,
        os_features=tuple(message.os_features),
    )


def _item(name: str, message: betterproto2.Message) -> Item:
    return Item(f"containerd.types.transfer.{name}", encode(message))


def _descriptor(one: Descriptor) -> WireDescriptor:
    return WireDescriptor(
        media_type=one.media_type, digest=str(one.digest), size=one.size, annotations=dict(one.annotations)
    )


def _progress(progress: Progress) -> wire.Progress:
    return wire.Progress(
        event=progress.event,
        name=progress.name,
        parents=list(progress.parents),
        progress=progress.progress,
        total=progress.total,
        desc=_descriptor(progress.descriptor) if progress.descriptor else None,
    )
