"""The server's side of one call, as grpclib's handlers want it, and what becomes of the handler's errors."""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

import grpclib.server
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import Deadline
from multidict import MultiDict

from carina import context, errors
from carina.rpc import codec, codes, metadata
from carina.rpc.frames import Code
from carina.rpc.headers import MAX_LIST, REQUEST, Headers
from carina.rpc.streams import Stream, Terminated

log = logging.getLogger(__name__)

_ONE_ANSWER: Final = (Cardinality.UNARY_UNARY, Cardinality.STREAM_UNARY)


class ServerStream(grpclib.server.Stream[Any, Any]):
    """grpclib's interface over our streams. Nothing of grpclib's own implementation is used."""

    def __init__(self, stream: Stream, method: Handler, call: context.Call) -> None:
        assert stream.headers is not None
        self._stream = stream  # type: ignore[assignment]
        self._wire = stream
        self._method = method
        self._request = stream.headers
        self._call = call
        self.sent = 0
        self._accepted = False
        self._trailed = False
        self.status = Status.OK
        """What the call ended with."""

    @property
    def metadata(self) -> Any:  # type: ignore[override]
        return MultiDict((name, value) for name, value in self._request.map.items() if not name.startswith(":"))

    @property
    def deadline(self) -> Deadline | None:  # type: ignore[override]
        remaining = self._call.remaining
        return None if remaining is None else Deadline.from_timeout(remaining)

    @property
    def user_agent(self) -> str | None:  # type: ignore[override]
        return self._request.get("user-agent")

    async def recv_message(self) -> Any:
        data = await self._wire.receive()
        return None if data is None else codec.decode(self._method.request_type, data)

    async def send_initial_metadata(self, *, metadata: Any = None) -> None:
        if not self._accepted:
            self._accepted = True
            self._wire.send_headers(self._named(_accepted(metadata)))

    def _named(self, headers: Headers) -> Headers:
        """Whoever did not give the call a request id is told which one it got."""
        request = self._call.request
        return (
            headers
            if request is None or self._request.get(REQUEST) is not None
            else headers.identified(request.encode())
        )

    async def send_message(self, message: Any) -> None:
        """Send a message, or the bytes of one that goes to many and is encoded once."""
        data = message if isinstance(message, bytes) else codec.encode(message)
        if not self._accepted:
            await self.send_initial_metadata()
        self.sent += 1
        await self._wire.send_message(data)

    async def send_trailing_metadata(
        self,
        *,
        status: Status = Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: Any = None,
    ) -> None:
        self.finish(status, status_message)

    def finish(self, status: Status, text: str | None = None) -> None:
        """Send the trailers, once, and end the stream in both directions."""
        if self._trailed or self._wire.over:
            return
        self._trailed = True
        self.status = status
        if not self._accepted and self._request.get(REQUEST) is None:
            finish(self._wire, status, text, accepted=False, request=self._call.request)
        else:
            finish(self._wire, status, text, accepted=self._accepted)

    @property
    def answers_once(self) -> bool:
        return self._method.cardinality in _ONE_ANSWER

    async def cancel(self) -> None:
        self._wire.reset(Code.CANCEL)


def _accepted(extra: Any) -> Headers:
    return Headers(metadata.ACCEPTED.pairs + metadata.extra_pairs(extra)) if extra else metadata.ACCEPTED


def finish(
    stream: Stream, status: Status, text: str | None = None, *, accepted: bool, request: str | None = None
) -> None:
    """Trailers, as the whole answer if nothing was sent before; a client that still sends is told to stop."""
    good = status is Status.OK and accepted
    end = metadata.DONE if good else metadata.trailers(status, text, only=not accepted)
    stream.send_headers(end.identified(request.encode()) if request else end, end=True)
    if not stream.remote_closed:
        stream.reset(Code.NO_ERROR)


def refusal(headers: Headers) -> tuple[Status, str] | None:
    """Why a request can't be a gRPC call that we serve, whatever its method."""
    if headers.size > MAX_LIST:
        return Status.RESOURCE_EXHAUSTED, f"received header list larger than max ({headers.size} vs. {MAX_LIST})"
    if headers.get(":method") != "POST" or not headers.get(":path"):
        return Status.INVALID_ARGUMENT, "a gRPC call is a POST with a path"
    kind = (headers.get("content-type") or "").partition(";")[0]
    if kind not in ("application/grpc", "application/grpc+proto"):
        return Status.INVALID_ARGUMENT, f"content type {kind[:80]!r} is not supported"
    return None


def unknown(path: str, mapping: Mapping[str, Handler]) -> str:
    """What to say of a method that nobody serves."""
    service, _, method = path.removeprefix("/").rpartition("/")
    if any(known.startswith(f"/{service}/") for known in mapping):
        return f"unknown method {method[:200]} for service {service[:200]}"
    return f"unknown service {service[:200]}"


async def answer(stream: ServerStream, method: Handler, call: context.Call, *, name: str) -> None:
    """Run a handler to its end and send the status that fits. Cancellation passes through, unanswered."""
    try:
        with context.use(call):
            if call.deadline is None:
                await method.func(stream)
            else:
                await _within(stream, method, call.deadline)
        if stream.answers_once and not stream.sent:
            raise errors.Internal(f"{name} sent no answer")
        stream.finish(Status.OK)
    except Terminated:
        return
    except Exception as error:
        with context.use(call):
            status, text = outcome(error, name, call.request)
        stream.finish(status, text)


async def _within(stream: ServerStream, method: Handler, deadline: float) -> None:
    timer = asyncio.timeout(max(0.0, deadline - time.monotonic()))
    try:
        async with timer:
            await method.func(stream)
    except TimeoutError:
        if timer.expired():
            raise errors.DeadlineExceeded("deadline exceeded") from None
        raise


def outcome(error: BaseException, name: str, request: str | None = None) -> tuple[Status, str | None]:
    """The status and text for an error; what the domain does not know is logged, and only the request id is told."""
    leaf = error
    while isinstance(leaf, BaseExceptionGroup) and len(leaf.exceptions) == 1:
        leaf = leaf.exceptions[0]
    if isinstance(leaf, errors.CarinaError):
        if isinstance(leaf, errors.Internal):
            log.error("%s: %s", name, leaf)
        return codes.status_of(leaf), str(leaf)
    if isinstance(leaf, GRPCError):
        return leaf.status, leaf.message
    number = request or secrets.token_hex(6)
    log.error("%s failed, error id %s", name, number, exc_info=error)
    return Status.UNKNOWN, f"internal error, id {number}"
