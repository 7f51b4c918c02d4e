"""What a call's headers say, and how to say it: context, deadline, status."""

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from carina.context import Call
from carina.errors import InvalidArgument
from carina.rpc.headers import REQUEST, Headers, Pair, make

NAMESPACE: Final = "containerd-namespace"
LEASE: Final = "containerd-lease"
TRACE: Final = "traceparent"
MAX_TEXT: Final = 16 << 10
"""Characters of an error's text that are sent."""

ACCEPTED: Final = make((":status", "200"), ("content-type", "application/grpc"))
DONE: Final = make(("grpc-status", "0"))

_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT: Final = re.compile(r"(\d{1,8})([HMSmun])")
_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)
_VALUE: Final = re.compile(r"[ -~]*")
_REQUEST: Final = re.compile(r"[!-~]{1,128}")


def new_request() -> str:
    """A request id that no other call has."""
    return os.urandom(8).hex()


def request_of(headers: Headers) -> str | None:
    """The request id that came with a call; None where there is none, or one that is too long or not printable."""
    given = headers.get(REQUEST)
    return given if given is not None and _REQUEST.fullmatch(given) else None


def read_call(headers: Headers, now: float, *, method: str | None = None, peer: str | None = None) -> Call:
    """The context of a call; one that comes without a request id gets one.

    Raises:
        InvalidArgument: its deadline is none.
    """
    text = headers.get("grpc-timeout")
    deadline = None
    if text is not None:
        match = _TIMEOUT.fullmatch(text)
        if match is None:
            raise InvalidArgument(f"grpc-timeout {text[:40]!r} is not valid")
        deadline = now + int(match[1]) * _UNITS[match[2]]
    get = headers.get
    return Call(
        namespace=get(NAMESPACE),
        lease=get(LEASE),
        trace=get(TRACE),
        deadline=deadline,
        request=request_of(headers) or new_request(),
        method=method,
        peer=peer,
    )


def told(headers: Headers, *, method: str, peer: str | None) -> Call:
    """What a call that is only passed on says of itself, for the log."""
    get = headers.get
    return Call(namespace=get(NAMESPACE), trace=get(TRACE), request=get(REQUEST), method=method, peer=peer)


def timeout(seconds: float) -> str:
    """A deadline for the wire, rounded up to about a sixteenth, so that equal calls have equal headers.

    The caller keeps its own time exactly; a callee may find itself with a little more.
    """
    if seconds > 64:
        return f"{int(seconds) + 1}S"
    milliseconds = max(1, int(seconds * 1000) + 1)
    step = 1 << max(0, milliseconds.bit_length() - 5)
    return f"{-(-milliseconds // step) * step}m"


def context_pairs(call: Call) -> tuple[Pair, ...]:
    """The headers that carry a call's context on, but for its deadline and its request id.

    Raises:
        InvalidArgument: a value that no header can carry.
    """
    pairs = []
    for name, value in ((NAMESPACE, call.namespace), (LEASE, call.lease), (TRACE, call.trace)):
        if value:
            if not _VALUE.fullmatch(value):
                raise InvalidArgument(f"{name} {value!r} has characters that are not printable ASCII")
            pairs.append((name.encode(), value.encode()))
    return tuple(pairs)


def extra_pairs(metadata: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]) -> tuple[Pair, ...]:
    items = metadata.items() if isinstance(metadata, Mapping) else metadata
    return tuple((name.lower().encode("ascii"), _value(value)) for name, value in items)


def _value(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else b64encode(value).rstrip(b"=")


def trailers(status: Status, text: str | None = None, *, only: bool = False) -> Headers:
    """The end of a call; `only` where it is the whole answer."""
    pairs = [(":status", "200"), ("content-type", "application/grpc")] if only else []
    pairs.append(("grpc-status", str(status.value)))
    if text:
        pairs.append(("grpc-message", quote(text[:MAX_TEXT], safe=_PRINTABLE)))
    return make(*pairs)


_HTTP: Final = {
    "400": Status.INTERNAL,
    "401": Status.UNAUTHENTICATED,
    "403": Status.PERMISSION_DENIED,
    "404": Status.UNIMPLEMENTED,
    "429": Status.UNAVAILABLE,
    "502": Status.UNAVAILABLE,
    "503": Status.UNAVAILABLE,
    "504": Status.UNAVAILABLE,
}


def raise_for_status(headers: Headers) -> None:
    """Raises GRPCError unless the trailers say OK."""
    text = headers.get("grpc-status")
    if text == "0":
        return
    if text is None:
        raise GRPCError(Status.UNKNOWN, "the answer has no grpc-status")
    message = headers.get("grpc-message")
    try:
        status = Status(int(text))
    except ValueError:
        raise GRPCError(Status.UNKNOWN, f"status {text!r} is unknown: {message}") from None
    raise GRPCError(status, unquote(message, errors="replace") if message else None)


def raise_for_response(headers: Headers) -> None:
    """Raises GRPCError if what answers is not a gRPC server."""
    status = headers.get(":status")
    kind = headers.get("content-type") or ""
    if status != "200" and not kind.startswith("application/grpc"):
        raise GRPCError(_HTTP.get(status or "", Status.UNKNOWN), f"the answer has HTTP status {status}")
    if not kind.startswith("application/grpc"):
        raise GRPCError(Status.UNKNOWN, f"the answer has content type {kind[:80]!r}")


def binary(value: str) -> bytes:
    """A `-bin` header's value."""
    return b64decode(value + "=" * (-len(value) % 4))
