"""What a connection writes: collected, and sent once per turn of the event loop."""

import asyncio
from contextlib import suppress
from typing import Final

WRITE_BUFFER: Final = 1 << 20
"""Bytes that may wait for the socket before streams are held back."""
MAX_UNREAD: Final = 256 << 10
"""Bytes of answers to pings and settings that a peer may leave unread."""


class Output:
    """The headers, message and trailers of a short call share one system call here."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = self._unread = 0
        self.paused = False
        transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > WRITE_BUFFER:
            self.flush()

    def answer(self, data: bytes) -> None:
        """Write what the peer asked for, as long as it reads its answers."""
        if self.paused:
            self._unread += len(data)
            if self._unread > MAX_UNREAD:
                self._transport.abort()
                return
        self.write(data)

    def flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        if not parts or self._transport.is_closing():
            return
        with suppress(RuntimeError):  # uvloop: the transport of a cancelled connect is closed, and does not say so
            if len(parts) == 1:
                self._transport.write(parts[0])
            else:
                self._transport.writelines(parts)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._unread = 0

    def close(self) -> None:
        """Send what is collected, then close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
