"""One HTTP/2 connection (RFC 9113), of which this is what gRPC uses: no push, no priorities, no upgrade.

The connection reads frames and hands their content to its streams at once; it never holds more than the head of a
frame, or a block of headers. What it writes is collected and goes out once per turn of the event loop, so that the
headers, message and trailers of a short call share one system call.
Its own receive window is refilled on arrival and each stream's when the data is consumed:
a stream that nobody reads delays no other.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from carina.rpc import frames
from carina.rpc.frames import Code
from carina.rpc.headers import Decoder, Headers, Unreadable
from carina.rpc.output import WRITE_BUFFER, Output
from carina.rpc.reader import Broken, Reader
from carina.rpc.receiver import Receiver

log = logging.getLogger(__name__)

STREAM_WINDOW: Final = 4 << 20
CONNECTION_WINDOW: Final = 16 << 20
MAX_INBOUND_STREAMS: Final = 100_000

Accept = Callable[["Connection", int, Headers, bool], "Receiver | None"]


class Connection(asyncio.Protocol):
    def __init__(
        self, *, client: bool, accept: Accept | None = None, ended: Callable[["Connection"], None] | None = None
    ) -> None:
        self._client = client
        self._accept = accept
        self._ended = ended
        self.streams: dict[int, Receiver] = {}
        self.closed = False
        self.draining = False
        """New streams are not started any more: the peer or we said so."""
        self.send_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_FRAME
        self.max_streams = frames.MAX_STREAM
        self._initial_window = frames.DEFAULT_WINDOW
        self._next = 1 if client else 2
        self._highest = 0
        self._last_accepted = frames.MAX_STREAM
        self._received = 0
        self._decoder = Decoder()
        self._reader = Reader(self, preface=not client)
        self._data: tuple[Receiver | None, bool] = None, False
        self._said_size_update = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.greeting: asyncio.Future[None] | None = None
        """Done when the peer's settings have arrived, or the connection is lost."""
        self._pinged: asyncio.Future[None] | None = None
        self.loop: asyncio.AbstractEventLoop
        self._output: Output

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.loop = asyncio.get_running_loop()
        self.greeting = self.loop.create_future()
        self._output = Output(cast(asyncio.Transport, transport), self.loop)  # uvloop's is of no class of asyncio's
        values = {
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.MAX_FRAME_SIZE: frames.MAX_FRAME,
            frames.MAX_HEADER_LIST_SIZE: 1 << 20,
        }
        if self._client:
            values[frames.ENABLE_PUSH] = 0
            self._output.write(frames.PREFACE)
        else:
            values[frames.MAX_CONCURRENT_STREAMS] = MAX_INBOUND_STREAMS
        self._output.write(frames.settings(values))
        self._output.write(frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed:
            return
        self.closed = self.draining = True
        for future in (self._pinged, self.greeting, *self._waiting):
            if future is not None and not future.done():
                future.set_result(None)
        for stream in list(self.streams.values()):
            stream.terminated(None, "the connection was lost")
        self.streams.clear()
        if self._ended is not None:
            self._ended(self)

    def pause_writing(self) -> None:
        self._output.pause()

    def resume_writing(self) -> None:
        self._output.resume()
        self._wake()

    def eof_received(self) -> bool:
        return False

    def close(self) -> None:
        """Write what is collected and close."""
        if not self.closed:
            self._output.close()

    def abort(self) -> None:
        if not self.closed:
            self._output.abort()

    # --- writing

    def _wake(self) -> None:
        for stream in list(self.streams.values()):
            stream.writable()

    def start(self, stream: Receiver, headers: Headers, *, end: bool) -> None:
        """Open a stream of our own with a request. `draining` and `max_streams` are for the caller to respect."""
        stream.id, self._next = self._next, self._next + 2
        stream.send_window = self._initial_window
        stream.receive_window = STREAM_WINDOW
        self.streams[stream.id] = stream
        if self._next > frames.MAX_STREAM:
            self.draining = True
        self.send_headers(stream, headers, end=end)

    def send_headers(self, stream: Receiver, headers: Headers, *, end: bool) -> None:
        block = headers.block
        if not self._said_size_update:
            # Our blocks don't use the dynamic table; after this nothing the peer may set can matter.
            block, self._said_size_update = b"\x20" + block, True
        self._output.write(frames.headers(stream.id, block, end=end, limit=self.max_frame))
        if end:
            self._closed_locally(stream)

    def room(self, stream: Receiver) -> int:
        """How many bytes of data may be written now."""
        return 0 if self._output.paused else min(self.send_window, stream.send_window, WRITE_BUFFER)

    def send_data(self, stream: Receiver, data: bytes | memoryview, *, end: bool) -> None:
        """Write data for which there is room."""
        size = len(data)
        self.send_window -= size
        stream.send_window -= size
        flags = frames.END_STREAM if end else 0
        if size <= self.max_frame:
            self._output.write(frames.head(size, frames.DATA, flags, stream.id))
            if size:
                self._output.write(bytes(data))
        else:
            for at in range(0, size, self.max_frame):
                part = data[at : at + self.max_frame]
                last = at + self.max_frame >= size
                self._output.write(frames.head(len(part), frames.DATA, flags if last else 0, stream.id))
                self._output.write(bytes(part))
        if end:
            self._closed_locally(stream)

    def reset(self, stream: Receiver, code: Code) -> None:
        """End a stream in both directions, unless it has ended already."""
        if self._forget(stream.id) is not None and not self.closed:
            self._output.write(frames.rst_stream(stream.id, code))
        stream.local_closed = stream.remote_closed = True

    def consumed(self, stream: Receiver, size: int) -> None:
        """Let the peer send `size` bytes more on a stream."""
        stream.receive_window += size
        if not stream.remote_closed and not self.closed:
            self._output.write(frames.window_update(stream.id, size))

    def _closed_locally(self, stream: Receiver) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            self._forget(stream.id)

    def _forget(self, number: int) -> Receiver | None:
        stream = self.streams.pop(number, None)
        while self._waiting and len(self.streams) < self.max_streams:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                break
        if self._client and self.draining and not self.streams:
            self.loop.call_soon(self.close)
        return stream

    async def vacancy(self) -> None:
        """Until the peer allows one stream more."""
        while len(self.streams) >= self.max_streams and not self.draining:
            self._waiting.append(self.loop.create_future())
            await self._waiting[-1]

    def go_away(self, *, final: bool) -> None:
        """Ask the peer to start no streams; `final` refuses those that it starts nevertheless."""
        if self.closed:
            return
        self.draining = True
        if final:
            self._last_accepted = self._highest
        self._output.write(frames.goaway(self._last_accepted, Code.NO_ERROR))

    def ping(self) -> "asyncio.Future[None]":
        """A future that is done once the peer has read everything written before."""
        if self._pinged is None or self._pinged.done():
            self._pinged = self.loop.create_future()
            if self.closed:
                self._pinged.set_result(None)
            else:
                self._output.write(frames.ping(b"carina\0\0"))
        return self._pinged

    # --- reading

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        try:
            self._reader.feed(data)
        except Broken as error:
            log.debug("connection closed: %s", error)
            self._output.write(frames.goaway(self._highest, error.code, str(error).encode()))
            self.close()

    def begin_data(self, stream: int, counted: int, *, ended: bool) -> None:
        """Account for a frame's data."""
        self._received += counted
        if self._received > CONNECTION_WINDOW // 2:
            self._output.write(frames.window_update(0, self._received))
            self._received = 0
        receiver = self.streams.get(stream)
        if receiver is None:
            self._check_known(stream)
        elif receiver.remote_closed:
            receiver = None
        else:
            receiver.receive_window -= counted
            if receiver.receive_window < 0:
                self.reset(receiver, Code.FLOW_CONTROL_ERROR)
                receiver.terminated(Code.FLOW_CONTROL_ERROR, "the peer exceeded its window")
                receiver = None
        self._data = receiver, ended

    def data(self, data: bytes, counted: int, *, last: bool) -> None:
        receiver, ended = self._data
        if receiver is None or receiver.remote_closed:
            return
        if last and ended:
            self._closed_remotely(receiver)
        receiver.received_data(data, counted, ended=last and ended)

    def _closed_remotely(self, receiver: Receiver) -> None:
        receiver.remote_closed = True
        if receiver.local_closed:
            self._forget(receiver.id)

    def _check_known(self, stream: int) -> None:
        """A stream that is over may still get frames; one that never was may not."""
        ours = stream % 2 == (1 if self._client else 0)
        if not stream or stream >= (self._next if ours else self._highest + 1):
            raise Broken(Code.PROTOCOL_ERROR, f"stream {stream} is idle")

    def block(self, stream: int, block: bytes, *, ended: bool) -> None:
        try:
            headers = self._decoder.decode(block)
        except Unreadable as error:
            raise Broken(Code.COMPRESSION_ERROR, str(error)) from error
        receiver = self.streams.get(stream)
        if receiver is None:
            self._new_stream(stream, headers, ended=ended)
        elif not receiver.remote_closed:
            if not headers.valid:
                self.reset(receiver, Code.PROTOCOL_ERROR)
                receiver.terminated(Code.PROTOCOL_ERROR, "headers with forbidden characters")
                return
            if ended:
                self._closed_remotely(receiver)
            receiver.received_headers(headers, ended=ended)

    def _new_stream(self, stream: int, headers: Headers, *, ended: bool) -> None:
        if self._client or stream % 2 == 0 or stream <= self._highest:
            self._check_known(stream)
            return
        self._highest = stream
        if stream > self._last_accepted or len(self.streams) >= MAX_INBOUND_STREAMS:
            self._output.answer(frames.rst_stream(stream, Code.REFUSED_STREAM))
        elif not headers.valid or self._accept is None:
            self._output.answer(frames.rst_stream(stream, Code.PROTOCOL_ERROR))
        else:
            self._accept(self, stream, headers, ended)

    def adopt(self, stream: Receiver, number: int, *, ended: bool) -> None:
        """Register the object behind a stream that the peer has just opened."""
        stream.id = number
        stream.send_window = self._initial_window
        stream.receive_window = STREAM_WINDOW
        stream.remote_closed = ended
        self.streams[number] = stream

    def frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A frame that carries neither data nor headers; unknown ones are ignored, as they must be."""
        reader = _READERS.get(kind)
        if reader is not None:
            reader(self, flags, stream, payload)

    def _rst_stream(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Broken(Code.FRAME_SIZE_ERROR, "RST_STREAM")
        receiver = self._forget(stream)
        if receiver is None:
            self._check_known(stream)
            return
        receiver.local_closed = receiver.remote_closed = True
        number = int.from_bytes(payload, "big")
        code = Code(number) if number <= Code.HTTP_1_1_REQUIRED else Code.INTERNAL_ERROR
        receiver.terminated(code, f"the peer reset the stream: {code.name}")

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) % 6:
            raise Broken(Code.FRAME_SIZE_ERROR, "SETTINGS")
        if flags & frames.ACK:
            return
        for key, value in frames.read_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise Broken(Code.FLOW_CONTROL_ERROR, "SETTINGS")
                for receiver in self.streams.values():
                    receiver.send_window += value - self._initial_window
                self._initial_window = value
            elif key == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME <= value < 1 << 24:
                    raise Broken(Code.PROTOCOL_ERROR, "SETTINGS")
                self.max_frame = min(value, frames.MAX_FRAME)
            elif key == frames.MAX_CONCURRENT_STREAMS:
                self.max_streams = value
        self._output.answer(frames.SETTINGS_ACK)
        if self.greeting is not None and not self.greeting.done():
            self.greeting.set_result(None)
        self._wake()

    def _ping(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 8 or stream:
            raise Broken(Code.FRAME_SIZE_ERROR, "PING")
        if not flags & frames.ACK:
            self._output.answer(frames.ping(payload, ack=True))
        elif self._pinged is not None and not self._pinged.done():
            self._pinged.set_result(None)

    def _goaway(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) < 8:
            raise Broken(Code.FRAME_SIZE_ERROR, "GOAWAY")
        self.draining = True
        last = int.from_bytes(payload[:4], "big") & frames.MAX_STREAM
        for number in [number for number in self.streams if number > last and self._client]:
            receiver = self.streams.pop(number)
            receiver.local_closed = receiver.remote_closed = True
            receiver.terminated(Code.REFUSED_STREAM, "the peer is stopping")
        if self._client and not self.streams:
            self.close()

    def _window_update(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Broken(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        size = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not stream:
            self.send_window += size
            if not size or self.send_window > frames.MAX_WINDOW:
                raise Broken(Code.FLOW_CONTROL_ERROR, "WINDOW_UPDATE")
            if self.send_window <= size:  # streams may have waited for it
                self._wake()
            return
        receiver = self.streams.get(stream)
        if receiver is None:
            self._check_known(stream)
            return
        receiver.send_window += size
        if not size or receiver.send_window > frames.MAX_WINDOW:
            self.reset(receiver, Code.FLOW_CONTROL_ERROR)
            receiver.terminated(Code.FLOW_CONTROL_ERROR, "the peer's window is out of range")
        else:
            receiver.writable()

    def _push(self, flags: int, stream: int, payload: bytes) -> None:
        raise Broken(Code.PROTOCOL_ERROR, "push is not enabled")


_READERS: Final[dict[int, Callable[[Connection, int, int, bytes], None]]] = {
    frames.RST_STREAM: Connection._rst_stream,
    frames.SETTINGS: Connection._settings,
    frames.PUSH_PROMISE: Connection._push,
    frames.PING: Connection._ping,
    frames.GOAWAY: Connection._goaway,
    frames.WINDOW_UPDATE: Connection._window_update,
}
