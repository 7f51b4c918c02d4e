"""Calls passed through: what arrives on one connection goes out on another, undecoded.

Headers, data and trailers are forwarded as they come, in the same turn of the event loop and without a task per call.
What the receiving side has no room for waits here, and is acknowledged to the sending side only once it is gone,
so at most one window of data is held per call and direction. A reset travels on in both directions.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from grpclib.const import Status

from carina.rpc import metadata
from carina.rpc.connection import STREAM_WINDOW, Connection
from carina.rpc.frames import Code
from carina.rpc.headers import Headers
from carina.tracing import Span

_STATUS: Final = {
    Code.REFUSED_STREAM: Status.UNAVAILABLE,
    Code.CANCEL: Status.CANCELLED,
    Code.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    Code.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}
_KNOWN: Final = frozenset(status.value for status in Status)


class Leg:
    """One side of a call that is passed through."""

    __slots__ = (
        "connection",
        "id",
        "local_closed",
        "other",
        "queue",
        "receive_window",
        "relay",
        "remote_closed",
        "send_window",
        "unacknowledged",
    )
    other: "Leg"

    def __init__(self, relay: "Relay", connection: Connection | None) -> None:
        self.relay = relay
        self.connection = connection
        self.id = 0
        self.send_window = self.receive_window = 0
        self.local_closed = self.remote_closed = False
        self.queue: deque[tuple[bytes | Headers, bool]] = deque()
        self.unacknowledged = 0

    def received_headers(self, headers: Headers, *, ended: bool) -> None:
        if self is self.relay.up:
            headers = self.relay.heard(headers, ended=ended)
        self.other.push(headers, ended=ended)

    def received_data(self, data: bytes, counted: int, *, ended: bool) -> None:
        if counted > len(data):
            self.consumed(counted - len(data))
        if data or ended:
            self.other.push(data, ended=ended)

    def push(self, item: bytes | Headers, *, ended: bool) -> None:
        """Write, or keep until it can be written."""
        if self.local_closed:
            return
        connection = self.connection
        if self.queue or connection is None or not self.id:
            self.queue.append((item, ended))
        elif isinstance(item, Headers):
            connection.send_headers(self, item, end=ended)
            self.sent(0, ended=ended)
        elif len(item) <= connection.room(self):
            connection.send_data(self, item, end=ended)
            self.sent(len(item), ended=ended)
        else:
            self.queue.append((item, ended))
            self.writable()

    def sent(self, size: int, *, ended: bool) -> None:
        if size:
            self.other.consumed(size)
        if ended:
            self.relay.check()

    def consumed(self, size: int) -> None:
        """What came in here is gone: let the peer send as much again."""
        self.unacknowledged += size
        if self.unacknowledged >= STREAM_WINDOW // 4 and self.connection is not None:
            self.connection.consumed(self, self.unacknowledged)
            self.unacknowledged = 0

    def writable(self) -> None:
        connection = self.connection
        if connection is None or not self.id:
            return
        while self.queue and not self.local_closed:
            item, ended = self.queue[0]
            if isinstance(item, Headers):
                self.queue.popleft()
                connection.send_headers(self, item, end=ended)
                self.sent(0, ended=ended)
                continue
            room = connection.room(self)
            if len(item) > room:
                if room <= 0:
                    return
                self.queue[0] = (item[room:], ended)
                connection.send_data(self, item[:room], end=False)
                self.sent(room, ended=False)
            else:
                self.queue.popleft()
                connection.send_data(self, item, end=ended)
                self.sent(len(item), ended=ended)

    def terminated(self, code: Code | None, reason: str) -> None:
        self.relay.terminated(self, code, reason)

    def reset(self, code: Code) -> None:
        self.queue.clear()
        if self.connection is not None and self.id:
            self.connection.reset(self, code)
        self.local_closed = self.remote_closed = True


class Relay:
    """One call that is passed through, from its request until both sides are closed."""

    __slots__ = ("_done", "answered", "begun", "down", "named", "request", "span", "status", "up", "upstream")

    def __init__(
        self, connection: Connection, stream: int, request: Headers, *, ended: bool, done: Callable[["Relay"], None]
    ) -> None:
        self.request = request
        self.upstream = ""
        self.begun = time.monotonic()
        self.status = Status.CANCELLED
        """What it ended with; as it is, if the client ends it."""
        self.named: bytes | None = None
        """The request id that was made for it here, of which the client does not know yet."""
        self.span: Span | None = None
        self.answered = False
        """Whether the client has got headers."""
        self._done: Callable[[Relay], None] | None = done
        self.down = Leg(self, connection)
        self.up = Leg(self, None)
        self.down.other, self.up.other = self.up, self.down
        connection.adopt(self.down, stream, ended=ended)

    def start(self, connection: Connection) -> None:
        """Open the call on the upstream's connection and send what has arrived meanwhile."""
        if self._done is None:
            return
        self.up.connection = connection
        ended = self.down.remote_closed and not self.up.queue
        connection.start(self.up, self.request, end=ended)
        self.up.writable()

    def heard(self, headers: Headers, *, ended: bool) -> Headers:
        """Take note of headers from the upstream. Returns what the client gets."""
        if ended:
            text = headers.get("grpc-status") or ""
            known = text.isdecimal() and int(text) in _KNOWN
            self.status = Status(int(text)) if known else Status.UNKNOWN
        if self.named is not None and not self.answered:
            headers = headers.identified(self.named)
        self.answered = True
        return headers

    def check(self) -> None:
        """Called when a direction has ended."""
        if not self.down.local_closed:
            return
        if not self.down.remote_closed:
            if not (self.up.local_closed and self.up.remote_closed):
                return
            # The upstream wants no more of the request.
            self.down.reset(Code.NO_ERROR)
        self._finish()

    def _finish(self) -> None:
        if self._done is not None:
            done, self._done = self._done, None
            if not (self.up.local_closed and self.up.remote_closed):
                self.up.reset(Code.CANCEL)
            done(self)

    def fail(self, status: Status, text: str) -> None:
        """Answer the client for the upstream."""
        down = self.down
        self.status = status
        down.queue.clear()
        if down.connection is not None and not down.local_closed:
            end = metadata.trailers(status, text, only=not self.answered)
            if self.named is not None and not self.answered:
                end = end.identified(self.named)
            down.connection.send_headers(down, end, end=True)
            if not down.remote_closed:
                down.reset(Code.NO_ERROR)
        self._finish()

    def terminated(self, leg: Leg, code: Code | None, reason: str) -> None:
        leg.local_closed = leg.remote_closed = True
        if leg is self.down:
            self._finish()
        elif self.down.local_closed or any(ended for _, ended in self.down.queue):
            self.check()  # its answer is complete
        elif code is None:
            self.fail(Status.UNAVAILABLE, f"{self.upstream}: {reason}")
        else:
            self.fail(_STATUS.get(code, Status.INTERNAL), f"{self.upstream}: {reason}")
