"""What went wrong between us and a registry, in sentences that say what can be done about it."""

import json
import os
import socket
import ssl
from typing import Any, Final

import aiohttp

from carina.errors import CarinaError, Unavailable
from imaged.patience import Transient

MAX_BODY: Final = 8192
"""Bytes of an answer that are looked at for the reason of a refusal."""
_MAX_REASON: Final = 300
_UNKNOWN_NAME: Final = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))

FAILURES: Final = (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError)
"""What aiohttp raises when a request fails."""


def unreachable(error: BaseException, whom: str, about: str = "") -> CarinaError:
    """The error for a request of `whom` that got no answer: Transient where another attempt may succeed."""
    found = _unreachable(error, whom)
    return type(found)(f"{found} ({about})") if about else found


def _unreachable(error: BaseException, whom: str) -> CarinaError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Unavailable(f"{whom} shows a certificate that is not accepted: {_certificate(error)}")
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return Unavailable(
            f"{whom} does not speak TLS as expected ({_reason(error.os_error)});"
            " if it speaks plain http, that has to be asked for"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Unavailable(f"{whom} can't be reached: the proxy refuses ({error.status})")
    if isinstance(error, aiohttp.ClientConnectorDNSError) and error.os_error.errno in _UNKNOWN_NAME:
        return Unavailable(f"{whom} can't be reached: its name is not known; check how it is spelled, and the DNS")
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return Transient(f"{whom} can't be reached: the proxy does not answer ({_reason(error.os_error)})")
    if isinstance(error, aiohttp.InvalidURL | aiohttp.ClientResponseError):
        return Unavailable(f"{whom} answers with something else than http: {_short(str(error))}")
    return Transient(f"{whom} can't be reached: {_reason(error)}")


def broken(error: BaseException) -> str:
    """Why an answer stopped in the middle."""
    return "no bytes arrive" if isinstance(error, TimeoutError) else "the connection breaks"


def stated_reason(body: bytes) -> str:
    """What a registry says of itself in the body of a refusal (`: CODE: message`); empty where it says nothing."""
    try:
        document: Any = json.loads(body)
        first = document["errors"][0]
        parts = [str(first.get("code", "")), str(first.get("message", ""))]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ""
    text = _short(": ".join(part for part in parts if part))
    return f": {text}" if text else ""


def _certificate(error: aiohttp.ClientConnectorCertificateError) -> str:
    cause = error.certificate_error
    reason = _short(str(getattr(cause, "verify_message", "") or cause))
    if "expired" in reason:
        return f"{reason}; its operator has to renew it, or this machine's clock is wrong"
    return f"{reason}; name the authority that signed it as ca in the registry's hosts.toml"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name can't be looked up"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _reason(error.os_error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closes the connection without an answer"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "TLS fails").lower().replace("_", " ")
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return _short(str(error)) or type(error).__name__


def _short(text: str) -> str:
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}…"
