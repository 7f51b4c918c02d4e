"""What travels with a call from the client to the last service: namespace, lease, trace, request id and deadline.

A server binds a `Call` for each request that it handles;
a client sends the current one along with each request that it makes.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Final

from carina.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument

MAX_IDENTIFIER_LENGTH: Final = 76
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9]+(?:[-_.]+[A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The context of one call."""

    namespace: str | None = None
    lease: str | None = None
    trace: str | None = None
    """W3C `traceparent`, passed on as it came."""
    deadline: float | None = None
    """Moment on `time.monotonic()`'s clock after which nobody waits for the answer; None: no limit."""
    request: str | None = None
    """What the call is known by in the logs of every service that it reaches; made where it comes in."""
    method: str | None = None
    """Path of the method that is being served, `/package.Service/Method`. It stays in this process, as does `peer`."""
    peer: str | None = None
    """Who called: `pid=PID uid=UID`, as the kernel says of the socket."""

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, not below 0."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_EMPTY: Final = Call()
_current: ContextVar[Call] = ContextVar("carina.call")


def current() -> Call:
    return _current.get(_EMPTY)


@contextlib.contextmanager
def use(call: Call) -> Iterator[Call]:
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


@contextlib.contextmanager
def within(*, namespace: str | None = None, lease: str | None = None) -> Iterator[Call]:
    """Run the block in a namespace, and under a lease where one is given; both are inherited otherwise."""
    call = current()
    call = replace(
        call,
        namespace=call.namespace if namespace is None else namespace,
        lease=call.lease if lease is None else lease,
    )
    with use(call) as bound:
        yield bound


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[Call]:
    """Give the calls in the block `seconds` at the most; an earlier deadline stays."""
    call = current()
    moment = time.monotonic() + seconds
    if call.deadline is not None:
        moment = min(moment, call.deadline)
    with use(replace(call, deadline=moment)) as bound:
        yield bound


@contextlib.contextmanager
def no_deadline() -> Iterator[Call]:
    """Let the calls in the block last as long as their work."""
    with use(replace(current(), deadline=None)) as bound:
        yield bound


def require_time(doing: str) -> None:
    """Refuse to begin what nobody waits for any more.

    Raises:
        DeadlineExceeded: the call's deadline has passed.
    """
    if current().remaining == 0.0:
        raise DeadlineExceeded(f"{doing}: the time given was over before it began")


def namespace() -> str:
    """The call's namespace.

    Raises:
        FailedPrecondition: the call names none (as containerd answers).
        InvalidArgument: its name is not an identifier.
    """
    name = current().namespace
    if not name:
        raise FailedPrecondition("namespace is required")
    validate_identifier(name, "namespace")
    return name


def validate_identifier(text: str, noun: str) -> None:
    """Check a namespace, container or sandbox id against containerd's rule for identifiers.

    Raises:
        InvalidArgument: empty, over 76 characters, or other than alphanumerics joined by `-`, `_` and `.`.
    """
    if not text:
        raise InvalidArgument(f"{noun} must not be empty")
    if len(text) > MAX_IDENTIFIER_LENGTH:
        raise InvalidArgument(f"{noun} {text[:20]!r}… has {len(text)} characters, more than {MAX_IDENTIFIER_LENGTH}")
    if _IDENTIFIER.fullmatch(text) is None:
        raise InvalidArgument(f"{noun} {text!r} is not valid: it must match {_IDENTIFIER.pattern}")
