"""Bytes into frames, in whatever pieces they arrive.

The content of DATA frames is handed on as it comes, so a large frame is never collected here;
other frames are, up to their end, and HEADERS with their continuations.
"""

from typing import Final, Protocol

from carina.rpc import frames
from carina.rpc.frames import Code

MAX_CONTINUATIONS: Final = 1024
MAX_BLOCK: Final = 4 << 20


class Broken(Exception):
    """The peer breaks the protocol: the connection ends."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Sink(Protocol):
    """What frames are handed to. Every method may raise Broken."""

    closed: bool

    def begin_data(self, stream: int, counted: int, *, ended: bool) -> None:
        """A DATA frame begins; `counted` bytes count against the windows."""

    def data(self, data: bytes, counted: int, *, last: bool) -> None:
        """A part of the DATA frame that has begun, its last one if so said."""

    def block(self, stream: int, block: bytes, *, ended: bool) -> None:
        """A block of headers."""

    def frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Any other frame."""


class Reader:
    """Reads one direction of a connection; `preface` says whether the peer begins with the client's preface."""

    def __init__(self, sink: Sink, *, preface: bool) -> None:
        self._sink = sink
        self._partial = bytearray()
        self._needed = 0
        self._left = 0
        self._preface = preface
        self._block: tuple[int, bool, bytearray, int] | None = None

    def feed(self, data: bytes) -> None:
        """Raises Broken."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
            self._partial.clear()
        at, end = 0, len(data)
        if self._preface:
            at = self._read_preface(data)
        while at < end and not self._sink.closed:
            if self._left:
                size = min(self._left, end - at)
                self._left -= size
                part = data if size == len(data) else data[at : at + size]
                self._sink.data(part, size, last=not self._left)
                at += size
                continue
            taken = self._read_frame(data, at, end)
            if not taken:
                self._partial += data[at:]
                return
            at += taken

    def _read_preface(self, data: bytes) -> int:
        size = len(frames.PREFACE)
        if not frames.PREFACE.startswith(data[:size]):
            raise Broken(Code.PROTOCOL_ERROR, "this is not HTTP/2 with prior knowledge")
        if len(data) < size:
            self._partial += data
            self._needed = size
            return len(data)
        self._preface = False
        return size

    def _read_frame(self, data: bytes, at: int, end: int) -> int:
        """How many bytes were used up: none if the frame is not there as a whole."""
        if end - at < 9:
            self._needed = 9
            return 0
        high, low, kind, flags, stream = frames.HEAD.unpack_from(data, at)
        size: int = high << 16 | low
        stream &= frames.MAX_STREAM
        if size > frames.MAX_FRAME:
            raise Broken(Code.FRAME_SIZE_ERROR, f"a frame of {size} bytes is too large")
        if self._block is not None and (kind != frames.CONTINUATION or stream != self._block[0]):
            raise Broken(Code.PROTOCOL_ERROR, "a block of headers was interrupted")
        if kind == frames.DATA and size and not flags & frames.PADDED:
            self._sink.begin_data(stream, size, ended=bool(flags & frames.END_STREAM))
            self._left = size
            return 9
        if end - at < 9 + size:
            self._needed = 9 + size
            return 0
        self._whole(kind, flags, stream, data[at + 9 : at + 9 + size])
        return 9 + size

    def _whole(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            counted = len(payload)
            self._sink.begin_data(stream, counted, ended=bool(flags & frames.END_STREAM))
            self._sink.data(_without_padding(payload) if flags & frames.PADDED else payload, counted, last=True)
        elif kind == frames.HEADERS:
            self._headers(flags, stream, payload)
        elif kind == frames.CONTINUATION:
            self._continuation(flags, stream, payload)
        else:
            self._sink.frame(kind, flags, stream, payload)

    def _headers(self, flags: int, stream: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = _without_padding(payload)
        if flags & frames.WITH_PRIORITY:
            payload = payload[5:]
        if not stream:
            raise Broken(Code.PROTOCOL_ERROR, "headers without a stream")
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._sink.block(stream, payload, ended=ended)
        else:
            self._block = stream, ended, bytearray(payload), 0

    def _continuation(self, flags: int, stream: int, payload: bytes) -> None:
        if self._block is None:
            raise Broken(Code.PROTOCOL_ERROR, "a continuation of nothing")
        _, ended, block, count = self._block
        block += payload
        if len(block) > MAX_BLOCK or count >= MAX_CONTINUATIONS:
            raise Broken(Code.ENHANCE_YOUR_CALM, "a block of headers is too large")
        self._block = stream, ended, block, count + 1
        if flags & frames.END_HEADERS:
            self._block = None
            self._sink.block(stream, bytes(block), ended=ended)


def _without_padding(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Broken(Code.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
