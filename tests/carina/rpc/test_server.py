"""The server, as a C-core client and raw HTTP/2 meet it."""

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from carina import context, errors
from carina.api.containerd.services.content.v1 import (
    ContentBase,
    ContentStub,
    Info,
    InfoRequest,
    InfoResponse,
    ReadContentRequest,
    ReadContentResponse,
    WriteContentRequest,
    WriteContentResponse,
)
from carina.api.containerd.services.version.v1 import VersionResponse
from carina.api.google.protobuf import Empty
from carina.api.grpc.health.v1 import HealthCheckRequest, HealthStub
from carina.rpc import frames, headers
from carina.rpc.client import connect
from carina.rpc.codec import decode, encode
from carina.rpc.server import Listener, serve

INFO = "/containerd.services.content.v1.Content/Info"
READ = "/containerd.services.content.v1.Content/Read"
WRITE = "/containerd.services.content.v1.Content/Write"


class Content(ContentBase):
    """Answers by what the digest says."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0
        self.calls: list[context.Call] = []

    async def info(self, message: InfoRequest) -> InfoResponse:
        self.calls.append(context.current())
        if message.digest == "wait":
            self.waiting += 1
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.waiting -= 1
        elif message.digest == "missing":
            raise errors.NotFound("content missing: not found – wirklich")
        elif message.digest == "grouped":
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fail())
        elif message.digest == "bug":
            raise ValueError("a secret")
        return InfoResponse(info=Info(digest=message.digest))

    async def _fail(self) -> None:
        raise errors.AlreadyExists("content grouped: already exists")

    async def read(self, message: ReadContentRequest) -> AsyncIterator[ReadContentResponse]:
        for at in range(message.size):
            yield ReadContentResponse(offset=at, data=bytes(1 << 20))

    async def write(self, messages: AsyncIterator[WriteContentRequest]) -> AsyncIterator[WriteContentResponse]:
        total = 0
        async for message in messages:
            total += len(message.data)
            yield WriteContentResponse(total=total)


@contextlib.asynccontextmanager
async def _served(directory: Path, **options: Any) -> AsyncIterator[tuple[str, Content, Listener]]:
    address, content = f"unix://{directory}/s.sock", Content()
    async with serve(address, [content], name="tested", **options) as listener:
        yield address, content, listener


def _call(address: str, path: str, message: Any, *, options: Any = (), **more: Any) -> bytes:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1), *options]) as channel:
        answer: bytes = channel.unary_unary(path)(encode(message), timeout=15, **more)
        return answer


async def _fails(work: Callable[..., Any], *args: Any, **more: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(work, *args, **more)
    return caught.value


async def test_a_unary_call(tmp_path: Path) -> None:
    """A client of Google's library gets its answer."""
    async with _served(tmp_path) as (address, _, _):
        answer = await asyncio.to_thread(_call, address, INFO, InfoRequest(digest="a"))

    assert decode(InfoResponse, answer) == InfoResponse(info=Info(digest="a"))


async def test_the_context_of_a_call_is_bound(tmp_path: Path) -> None:
    """Namespace, lease, trace and deadline of a request are the handler's context."""
    sent = (("containerd-namespace", "moby"), ("containerd-lease", "l1"), ("traceparent", "00-1-2-01"))
    async with _served(tmp_path) as (address, content, _):
        await asyncio.to_thread(_call, address, INFO, InfoRequest(digest="a"), metadata=sent)
    call = content.calls[0]

    assert (call.namespace, call.lease, call.trace) == ("moby", "l1", "00-1-2-01")
    assert call.remaining is not None
    assert 10 < call.remaining < 16


@pytest.mark.parametrize(
    ("digest", "code", "text"),
    [
        ("missing", grpc.StatusCode.NOT_FOUND, "content missing: not found – wirklich"),
        ("grouped", grpc.StatusCode.ALREADY_EXISTS, "content grouped: already exists"),
    ],
)
async def test_errors_of_the_domain_become_statuses(tmp_path: Path, digest: str, code: Any, text: str) -> None:
    """The class decides the status, the text arrives as it is, and a group of one counts as that one."""
    async with _served(tmp_path) as (address, _, _):
        error = await _fails(_call, address, INFO, InfoRequest(digest=digest))

    assert (error.code(), error.details()) == (code, text)


async def test_a_bug_tells_the_client_a_number_and_the_log_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The text of an unexpected error stays in the log, under the number that the client gets."""
    async with _served(tmp_path) as (address, _, _):
        error = await _fails(_call, address, INFO, InfoRequest(digest="bug"))
    match = re.fullmatch(r"internal error, id (\w+)", error.details())

    assert error.code() == grpc.StatusCode.UNKNOWN
    assert match is not None
    assert match[1] in caplog.text
    assert "a secret" in caplog.text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/containerd.services.mounts.v1.Mounts/Activate", "unknown service containerd.services.mounts.v1.Mounts"),
        (INFO + "s", "unknown method Infos for service containerd.services.content.v1.Content"),
        ("/containerd.services.content.v1.Content/Abort", "unimplemented"),
    ],
)
async def test_what_nobody_serves_is_unimplemented(tmp_path: Path, path: str, text: str) -> None:
    """Unknown services and methods, and methods without code, are UNIMPLEMENTED, which clients fall back upon."""
    async with _served(tmp_path) as (address, _, _):
        error = await _fails(_call, address, path, InfoRequest())

    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert text in error.details() or error.details() == ""


async def test_a_malformed_message_is_an_invalid_argument(tmp_path: Path) -> None:
    """Bytes that are no InfoRequest are refused, and the connection stays."""

    def calls(address: str) -> grpc.StatusCode:
        with grpc.insecure_channel(address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(INFO)(b"\x0a\x05ab", timeout=30)
            channel.unary_unary(INFO)(encode(InfoRequest(digest="a")), timeout=30)
            return caught.value.code()

    async with _served(tmp_path) as (address, _, _):
        assert await asyncio.to_thread(calls, address) == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """17 MiB are RESOURCE_EXHAUSTED as with containerd, 15 MiB are not."""
    async with _served(tmp_path) as (address, _, _):
        error = await _fails(_call, address, INFO, InfoRequest(digest="x" * (17 << 20)))
        answer = await asyncio.to_thread(_call, address, INFO, InfoRequest(digest="x" * (15 << 20)))

    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(answer) > 15 << 20


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_messages_are_accepted(tmp_path: Path, algorithm: grpc.Compression) -> None:
    """A client may compress its messages."""
    sent = InfoRequest(digest="z" * 100_000)
    async with _served(tmp_path) as (address, _, _):
        answer = await asyncio.to_thread(_call, address, INFO, sent, compression=algorithm)

    assert decode(InfoResponse, answer) == InfoResponse(info=Info(digest=sent.digest))


async def test_a_message_that_inflates_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """17 MiB that arrive as a few kB are RESOURCE_EXHAUSTED."""
    sent = InfoRequest(digest="z" * (17 << 20))
    async with _served(tmp_path) as (address, _, _):
        error = await _fails(_call, address, INFO, sent, compression=grpc.Compression.Gzip)

    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_large_headers_cost_only_their_call(tmp_path: Path) -> None:
    """70 kB of metadata arrive; 2 MiB are refused, and the connection's other calls go on."""
    limits = [("grpc.max_metadata_size", 8 << 20), ("grpc.absolute_max_metadata_size", 8 << 20)]

    def calls(address: str, content: Content) -> grpc.StatusCode:
        with grpc.insecure_channel(address, options=limits) as channel:
            info = channel.unary_unary(INFO)
            held = info.future(encode(InfoRequest(digest="wait")), timeout=20)
            info(encode(InfoRequest(digest="a")), metadata=[("containerd-lease", "l" * 70_000)], timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                info(encode(InfoRequest(digest="a")), metadata=[("x", "l" * (2 << 20))], timeout=20)
            loop.call_soon_threadsafe(content.release.set)
            held.result()
            return caught.value.code()

    loop = asyncio.get_running_loop()
    async with _served(tmp_path) as (address, content, _):
        assert await asyncio.to_thread(calls, address, content) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert max(len(call.lease or "") for call in content.calls) == 70_000


async def test_a_thousand_held_calls_delay_nobody(tmp_path: Path) -> None:
    """On one connection, 1,000 calls that wait leave room for one that is answered at once."""

    def calls(address: str, content: Content) -> float:
        with grpc.insecure_channel(address) as channel:
            info = channel.unary_unary(INFO)
            held = [info.future(encode(InfoRequest(digest="wait")), timeout=30) for _ in range(1000)]
            while content.waiting < 1000:
                time.sleep(0.01)
            start = time.perf_counter()
            info(encode(InfoRequest(digest="a")), timeout=30)
            took = time.perf_counter() - start
            loop.call_soon_threadsafe(content.release.set)
            for call in held:
                call.result()
            return took

    loop = asyncio.get_running_loop()
    async with _served(tmp_path) as (address, content, _):
        assert await asyncio.to_thread(calls, address, content) < 0.5


async def test_streams_in_both_directions(tmp_path: Path) -> None:
    """Messages of a MiB go up and down, each answered."""

    def calls(address: str) -> tuple[int, int]:
        with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
            sent = [encode(WriteContentRequest(data=bytes(1 << 20))) for _ in range(20)]
            written = [decode(WriteContentResponse, one) for one in channel.stream_stream(WRITE)(iter(sent))]
            read = channel.unary_stream(READ)(encode(ReadContentRequest(size=20)), timeout=20)
            return written[-1].total, sum(len(decode(ReadContentResponse, one).data) for one in read)

    async with _served(tmp_path) as (address, _, _):
        assert await asyncio.to_thread(calls, address) == (20 << 20, 20 << 20)


async def test_a_cancelled_call_cancels_its_handler(tmp_path: Path) -> None:
    """When the client lets go, the handler is cancelled."""

    def calls(address: str, content: Content) -> None:
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(INFO).future(encode(InfoRequest(digest="wait")))
            while not content.waiting:
                time.sleep(0.01)
            call.cancel()

    async with _served(tmp_path) as (address, content, _):
        await asyncio.to_thread(calls, address, content)
        async with asyncio.timeout(30):
            while content.waiting:
                await asyncio.sleep(0.01)
    assert content.cancelled == 1


async def test_a_deadline_ends_the_call_on_the_server_too(tmp_path: Path) -> None:
    """After the time that the client gave, the handler is cancelled even if the client says nothing more."""
    async with _served(tmp_path) as (address, content, _):
        reader, writer = await _raw(address)
        writer.write(_request(1, ("grpc-timeout", "100m")) + _data(1, InfoRequest(digest="wait")))
        answer = await _until(reader, b"grpc-status")
        writer.close()

    assert b"grpc-status\x014" in answer
    assert content.cancelled == 1


async def test_health_and_version_are_there(tmp_path: Path) -> None:
    """Every server answers grpc.health.v1 and containerd's Version."""
    async with _served(tmp_path) as (address, _, listener):
        channel = connect(address)
        version = await asyncio.to_thread(_call, address, "/containerd.services.version.v1.Version/Version", Empty())
        before = await HealthStub(channel).check(HealthCheckRequest())
        listener.health.set("", False)
        after = await HealthStub(channel).check(HealthCheckRequest())
        with pytest.raises(errors.NotFound):
            await HealthStub(channel).check(HealthCheckRequest(service="other"))
        channel.close()

    assert decode(VersionResponse, version).version.startswith("2.3.0+carina.")
    assert (before.status, after.status) == (1, 2)


async def test_health_can_be_watched(tmp_path: Path) -> None:
    """A watcher is told each change, and let go when the server stops."""
    seen = []
    async with asyncio.TaskGroup() as group:
        async with _served(tmp_path) as (address, _, listener):
            channel = connect(address)

            async def watch() -> None:
                async for answer in HealthStub(channel).watch(HealthCheckRequest(service="part")):
                    seen.append(answer.status.name)
                    listener.health.set("part", len(seen) == 1)

            group.create_task(watch())
            async with asyncio.timeout(30):
                while len(seen) < 3:
                    await asyncio.sleep(0.005)
    channel.close()

    assert seen == ["SERVICE_UNKNOWN", "SERVING", "NOT_SERVING"]


async def test_draining_lets_short_calls_finish_and_answers_long_ones(tmp_path: Path) -> None:
    """Within the grace a call completes; after it, what is left is UNAVAILABLE, with trailers."""
    outcomes: dict[str, str] = {}

    async def call(stub: ContentStub, digest: str) -> None:
        try:
            outcomes[digest] = (await stub.info(InfoRequest(digest=digest))).info.digest  # type: ignore[union-attr]
        except errors.CarinaError as error:
            outcomes[digest] = f"{type(error).__name__}: {error}"

    class Slow(Content):
        async def info(self, message: InfoRequest) -> InfoResponse:
            await asyncio.sleep(0.2 if message.digest == "short" else 60)
            return InfoResponse(info=Info(digest=message.digest))

    address = f"unix://{tmp_path}/s.sock"
    channel = connect(address)
    async with asyncio.TaskGroup() as group:
        async with serve(address, [Slow()], name="tested", grace=0.5):
            for digest in ("short", "long"):
                group.create_task(call(ContentStub(channel), digest))
            await asyncio.sleep(0.1)
            start = time.monotonic()
    took = time.monotonic() - start
    channel.close()

    assert outcomes == {"short": "short", "long": "Unavailable: tested is stopping"}
    assert 0.4 < took < 30


async def test_a_draining_server_refuses_new_streams_for_a_retry(tmp_path: Path) -> None:
    """GOAWAY comes first, then streams are refused with REFUSED_STREAM, which Go's client retries elsewhere."""
    async with _served(tmp_path, grace=0.5) as (address, content, _):
        reader, writer = await _raw(address)
        writer.write(_request(1) + _data(1, InfoRequest(digest="wait")))
        while not content.waiting:
            await asyncio.sleep(0.01)

        async def talk() -> bytes:
            seen = await _until(reader, frames.head(8, frames.GOAWAY, 0, 0))
            pinged = seen.rpartition(frames.head(8, frames.PING, 0, 0))[2][:8] if b"carina" in seen else b""
            writer.write(frames.ping(pinged or b"carina\0\0", ack=True))
            await asyncio.sleep(0.1)
            writer.write(_request(3) + _data(3, InfoRequest(digest="a")))
            return seen + await _until(reader, frames.rst_stream(3, frames.Code.REFUSED_STREAM))

        talking = asyncio.create_task(talk())
        await asyncio.sleep(0)
    seen = await talking + await reader.read()
    writer.close()

    assert frames.goaway(frames.MAX_STREAM, 0) in seen
    assert b"grpc-status\x0214" in seen


async def test_a_live_socket_is_not_taken_over(tmp_path: Path) -> None:
    """A second server at an address is refused, and says who has it; a stale socket is replaced."""
    async with _served(tmp_path) as (address, _, _):
        with pytest.raises(errors.FailedPrecondition, match=f"in use by pid {os.getpid()}"):
            async with _served(tmp_path):
                pass
        assert await asyncio.to_thread(_call, address, INFO, InfoRequest(digest="a"))
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(f"{tmp_path}/s.sock")
    stale.close()

    async with _served(tmp_path) as (address, _, _):
        assert await asyncio.to_thread(_call, address, INFO, InfoRequest(digest="a"))
    assert list(tmp_path.iterdir()) == []


async def test_the_socket_has_its_mode_and_group_from_the_start(tmp_path: Path) -> None:
    """Mode and group are as asked for."""
    async with _served(tmp_path, mode=0o640, gid=os.getgid()) as (_, _, _):
        found = (tmp_path / "s.sock").stat()

    assert (found.st_mode & 0o777, found.st_gid) == (0o640, os.getgid())


@pytest.mark.parametrize(
    "address", ["unix:///" + "x" * 107, "tcp://1.2.3.4:5", "unix://relative", "unix:///no/such/d/s"]
)
async def test_addresses_that_cannot_be(address: str) -> None:
    """Too long, of another kind, relative, in no directory: InvalidArgument."""
    with pytest.raises(errors.InvalidArgument):
        async with serve(address, [], name="tested"):
            pass


async def test_an_inherited_socket_is_used_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that the service manager passed on is served, and neither bound again nor unlinked."""
    manager = socket.socket(socket.AF_UNIX)
    manager.bind(f"{tmp_path}/s.sock")
    manager.listen()
    inode = (tmp_path / "s.sock").stat().st_ino
    monkeypatch.setattr("carina.rpc.sockets.FIRST_INHERITED", manager.fileno())
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")

    async with _served(tmp_path) as (address, _, _):
        assert await asyncio.to_thread(_call, address, INFO, InfoRequest(digest="a"))
    assert (tmp_path / "s.sock").stat().st_ino == inode
    manager.close()


# --- raw HTTP/2


async def _raw(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix://"))
    writer.write(frames.PREFACE + frames.settings({}))
    return reader, writer


def _request(stream: int, *more: tuple[str, str]) -> bytes:
    block = headers.make(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", INFO),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ).block
    return frames.headers(stream, block, end=False, limit=1 << 14)


def _data(stream: int, message: Any) -> bytes:
    data = encode(message)
    data = b"\0" + len(data).to_bytes(4, "big") + data
    return frames.head(len(data), frames.DATA, frames.END_STREAM, stream) + data


async def _until(reader: asyncio.StreamReader, wanted: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(30):
        while wanted not in seen:
            part = await reader.read(65536)
            if not part:
                break
            seen += part
    return seen


async def test_bytes_one_by_one(tmp_path: Path) -> None:
    """It does not matter in what pieces a request arrives."""
    async with _served(tmp_path) as (address, _, _):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix://"))
        whole = frames.PREFACE + frames.settings({}) + _request(1) + _data(1, InfoRequest(digest="abc"))
        for at in range(len(whole)):
            writer.write(whole[at : at + 1])
            await asyncio.sleep(0)
        seen = await _until(reader, b"grpc-status")
        writer.close()

    assert b"abc" in seen
    assert b"grpc-status\x010" in seen


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http1"),
        pytest.param(frames.PREFACE + frames.head(1 << 21, frames.DATA, 0, 1), id="huge frame"),
        pytest.param(frames.PREFACE + frames.head(4, frames.DATA, 0, 5) + b"abcd", id="idle stream"),
        pytest.param(frames.PREFACE + frames.head(2, frames.HEADERS, 4, 1) + b"\xff\xff", id="bad compression"),
        pytest.param(frames.PREFACE + frames.window_update(0, 0x7FFFFFFF), id="window overflow"),
        pytest.param(
            frames.PREFACE + frames.head(4, frames.CONTINUATION, 4, 1) + b"abcd", id="continuation of nothing"
        ),
        pytest.param(frames.PREFACE + frames.head(5, frames.SETTINGS, 0, 0) + b"abcde", id="settings"),
        pytest.param(frames.PREFACE + frames.head(4, frames.PUSH_PROMISE, 0, 1) + b"abcd", id="push"),
        pytest.param(
            frames.PREFACE
            + frames.head(0, frames.HEADERS, 0, 1)
            + b"".join(frames.head(0, frames.CONTINUATION, 0, 1) for _ in range(2000)),
            id="continuation flood",
        ),
    ],
)
async def test_who_breaks_the_protocol_is_cut_off_alone(tmp_path: Path, hostile: bytes) -> None:
    """A connection that breaks the rules ends; others don't notice."""
    async with _served(tmp_path) as (address, _, _):
        channel = connect(address)
        await ContentStub(channel).info(InfoRequest(digest="a"))
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix://"))
        writer.write(hostile)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                await reader.read(-1)
        writer.close()
        await ContentStub(channel).info(InfoRequest(digest="a"))
        channel.close()


async def test_a_message_of_4_gib_is_refused_before_it_comes(tmp_path: Path) -> None:
    """The length that a message claims is enough to refuse it."""
    async with _served(tmp_path) as (address, _, _):
        reader, writer = await _raw(address)
        writer.write(_request(1) + frames.head(5, frames.DATA, 0, 1) + b"\0\xff\xff\xff\xff")
        seen = await _until(reader, frames.rst_stream(1, 0))
        writer.close()

    assert b"grpc-status\x018" in seen


async def test_line_breaks_in_headers_are_refused(tmp_path: Path) -> None:
    """A value that another hop could read as more than one header ends its stream."""
    async with _served(tmp_path) as (address, content, _):
        reader, writer = await _raw(address)
        writer.write(_request(1, ("containerd-namespace", "a\r\nx: y")) + _data(1, InfoRequest(digest="a")))
        seen = await _until(reader, frames.rst_stream(1, frames.Code.PROTOCOL_ERROR))
        writer.close()

    assert frames.rst_stream(1, frames.Code.PROTOCOL_ERROR) in seen
    assert content.calls == []


async def test_ten_thousand_resets_leave_nothing_behind(tmp_path: Path) -> None:
    """Streams that are opened and reset at once cost nothing once they are over."""
    async with _served(tmp_path) as (address, content, listener):
        reader, writer = await _raw(address)
        for number in range(1, 20_001, 2):
            writer.write(_request(number) + _data(number, InfoRequest(digest="wait")) + frames.rst_stream(number, 8))
            if number % 500 == 1:
                await writer.drain()
                await asyncio.sleep(0)
        writer.write(_request(20_001) + _data(20_001, InfoRequest(digest="a")))
        seen = await _until(reader, b"grpc-status")
        writer.close()

        assert b"grpc-status\x010" in seen
        assert listener.in_flight == 0
        assert content.waiting == 0
