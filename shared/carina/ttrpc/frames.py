"""Frames on the wire, and what may be in them."""

import enum
import struct
from dataclasses import dataclass
from typing import Final

from carina.errors import ResourceExhausted

HEADER: Final = struct.Struct(">IIBB")
MAX_MESSAGE: Final = 4 << 20
NAMESPACE_KEY: Final = "containerd-namespace-ttrpc"
TRACE_KEY: Final = "traceparent"


class Kind(enum.IntEnum):
    REQUEST = 1
    RESPONSE = 2
    DATA = 3


@dataclass(frozen=True, slots=True)
class Frame:
    stream: int
    kind: int
    payload: bytes | None
    """None where the message was longer than allowed: it has been skipped."""


def pack(stream: int, kind: Kind, payload: bytes) -> bytes:
    """A whole frame.

    Raises:
        ResourceExhausted: the message is longer than ttrpc allows.
    """
    if len(payload) > MAX_MESSAGE:
        raise ResourceExhausted(f"ttrpc message of {len(payload)} bytes is longer than {MAX_MESSAGE}")
    return HEADER.pack(len(payload), stream, kind, 0) + payload


class Parser:
    """Cuts a byte stream into frames. Holds one message at the most, and nothing of one that is too long."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[Frame]:
        buffer, frames = self._buffer, []
        buffer += data
        start = 0
        while True:
            if self._skip:
                taken = min(self._skip, len(buffer) - start)
                self._skip -= taken
                start += taken
            if self._skip or len(buffer) - start < HEADER.size:
                break
            length, stream, kind, _ = HEADER.unpack_from(buffer, start)
            if length > MAX_MESSAGE:
                frames.append(Frame(stream, kind, None))
                start += HEADER.size
                self._skip = length
                continue
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append(Frame(stream, kind, bytes(buffer[start + HEADER.size : end])))
            start = end
        del buffer[:start]
        return frames
