"""What a connection needs of the object behind one of its streams."""

from typing import Protocol

from carina.rpc.frames import Code
from carina.rpc.headers import Headers


class Receiver(Protocol):
    """The windows and ends of a stream are the connection's to change; everything else is the object's own."""

    id: int
    send_window: int
    receive_window: int
    local_closed: bool
    remote_closed: bool

    def received_headers(self, headers: Headers, *, ended: bool) -> None: ...

    def received_data(self, data: bytes, counted: int, *, ended: bool) -> None:
        """`counted` bytes are to be consumed (padding counts)."""

    def terminated(self, code: Code | None, reason: str) -> None:
        """The peer reset the stream, or the connection is lost (no code)."""

    def writable(self) -> None:
        """There may be room to write again."""
