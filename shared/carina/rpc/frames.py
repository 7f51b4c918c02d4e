"""The frames of HTTP/2 (RFC 9113), as bytes."""

import enum
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct("!BHBBI")
"""A frame's head: its payload's length in two parts, kind, flags, stream."""
DEFAULT_FRAME: Final = 16_384
DEFAULT_WINDOW: Final = 65_535
MAX_FRAME: Final = 1 << 20
"""Bytes in a frame that we receive or send at the most."""
MAX_WINDOW: Final = (1 << 31) - 1
MAX_STREAM: Final = (1 << 31) - 1

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6


class Code(enum.IntEnum):
    """Error codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream)


def settings(values: dict[int, int]) -> bytes:
    payload = b"".join(struct.pack("!HI", key, value) for key, value in values.items())
    return head(len(payload), SETTINGS, 0, 0) + payload


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    return [(key, value) for key, value in struct.iter_unpack("!HI", payload)]


SETTINGS_ACK: Final = head(0, SETTINGS, ACK, 0)


def window_update(stream: int, size: int) -> bytes:
    return head(4, WINDOW_UPDATE, 0, stream) + size.to_bytes(4, "big")


def rst_stream(stream: int, code: int) -> bytes:
    return head(4, RST_STREAM, 0, stream) + code.to_bytes(4, "big")


def ping(data: bytes, *, ack: bool = False) -> bytes:
    return head(8, PING, ACK if ack else 0, 0) + data


def goaway(last: int, code: int, text: bytes = b"") -> bytes:
    return head(8 + len(text), GOAWAY, 0, 0) + struct.pack("!II", last, code) + text


def headers(stream: int, block: bytes, *, end: bool, limit: int) -> bytes:
    """A block of headers, in several frames if one can't hold it."""
    flags = END_STREAM if end else 0
    if len(block) <= limit:
        return head(len(block), HEADERS, flags | END_HEADERS, stream) + block
    parts = [block[at : at + limit] for at in range(0, len(block), limit)]
    out = [head(limit, HEADERS, flags, stream), parts[0]]
    for part in parts[1:]:
        out += [head(len(part), CONTINUATION, END_HEADERS if part is parts[-1] else 0, stream), part]
    return b"".join(out)
