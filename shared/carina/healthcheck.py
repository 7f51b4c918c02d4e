"""`python -m carina.healthcheck ADDRESS [PART]`: whether a service, or a part of it, can do its work.

Docker's health checks run all the time, so this one needs nothing but the standard library and some milliseconds:
one HTTP/2 connection (RFC 9113) with one call, whose few headers are spelled out (RFC 7541, literals).
Exit status: 0 it is serving, 1 it is not, 2 the command line is wrong.
"""

import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

_SECONDS: Final = 5.0
_SETTINGS: Final = 4
_DATA: Final = 0
_HEADERS: Final = 1
_GOAWAY: Final = 7
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_ACK: Final = 1
_SERVING: Final = b"\x08\x01"
"""HealthCheckResponse with status SERVING."""
_HEADS: Final = b"".join(
    [
        b"\x83\x86",  # :method POST, :scheme http, of the static table
        *(
            bytes([0, len(name)]) + name + bytes([len(value)]) + value
            for name, value in (
                (b":path", b"/grpc.health.v1.Health/Check"),
                (b":authority", b"localhost"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            )
        ),
    ]
)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = peer.recv(size - len(data))
        if not chunk:
            raise ConnectionError("the connection was closed")
        data += chunk
    return data


def serving(path: str, part: str = "") -> bool:
    """Ask the service at a socket's path.

    Raises:
        OSError: nobody answers, or not in time.
    """
    name = part.encode()
    message = bytes([10, len(name)]) + name if name else b""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(_SECONDS)
        peer.connect(path)
        peer.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0)
            + _frame(_HEADERS, _END_HEADERS, 1, _HEADS)
            + _frame(_DATA, _END_STREAM, 1, struct.pack("!BI", 0, len(message)) + message)
        )
        while True:
            head = _exactly(peer, 9)
            kind, flags, stream = head[3], head[4], struct.unpack("!I", head[5:])[0]
            payload = _exactly(peer, int.from_bytes(head[:3], "big"))
            if kind == _SETTINGS and not flags & _ACK:
                peer.sendall(_frame(_SETTINGS, _ACK, 0))
            elif kind == _DATA and stream == 1:
                return payload[5:] == _SERVING
            elif kind == _GOAWAY or (stream == 1 and flags & _END_STREAM):
                return False  # an error without an answer: there is no such part, or it is stopping


def main(arguments: Sequence[str]) -> int:
    """The exit status; why it is not 0 is on the standard error stream."""
    if not 1 <= len(arguments) <= 2 or len(arguments[-1].encode()) > 127:
        sys.stderr.write("usage: python -m carina.healthcheck ADDRESS [PART]\n")
        return 2
    address = arguments[0]
    try:
        if serving(address.removeprefix("unix://"), *arguments[1:]):
            return 0
        why = "it is not serving"
    except OSError as error:
        why = error.strerror or str(error)
    sys.stderr.write(f"{' '.join(arguments)}: {why.lower()}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
