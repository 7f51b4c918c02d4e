"""Proxies from the environment, by the rules that Go's programs follow: HTTPS_PROXY, HTTP_PROXY, NO_PROXY.

    NO_PROXY = "example.test,.internal.test,10.0.0.0/8,registry.test:5000"

A name stands for itself and what is below it, one with a dot before it only for what is below; `*` for all.
The loopback interface is never reached through a proxy.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from carina.errors import InvalidArgument

if TYPE_CHECKING:
    from yarl import URL


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Proxies:
    """None unless told."""

    https: str = ""
    http: str = ""
    exceptions: tuple[str, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        def one(name: str) -> str:
            return environment.get(name, "") or environment.get(name.lower(), "")

        exceptions = (part.strip().lower() for part in one("NO_PROXY").split(","))
        return cls(https=one("HTTPS_PROXY"), http=one("HTTP_PROXY"), exceptions=tuple(filter(None, exceptions)))

    def between(self, url: str) -> "URL | None":
        """The proxy for a URL, with what it wants to know in its own.

        Raises:
            InvalidArgument: the environment names something that is no proxy.
        """
        parts = urlsplit(url)
        text = self.https if parts.scheme == "https" else self.http
        host = parts.hostname or ""
        if not text or self._direct(host, parts.port or (443 if parts.scheme == "https" else 80)):
            return None
        from yarl import URL  # with the http client, which is loaded when it is needed

        try:
            proxy = URL(text if "://" in text else f"http://{text}")
        except ValueError:
            proxy = URL()
        if proxy.scheme not in ("http", "https") or not proxy.host:
            raise InvalidArgument(f"the environment's proxy for {parts.scheme} is not the URL of an http proxy")
        return proxy

    def _direct(self, host: str, port: int) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(_excepts(exception, host, port, address) for exception in self.exceptions)


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _excepts(exception: str, host: str, port: int, address: Address | None) -> bool:
    if exception == "*":
        return True
    if address is not None and "/" in exception:
        try:
            return address in ipaddress.ip_network(exception, strict=False)
        except ValueError:
            return False
    name, colon, number = exception.rpartition(":")
    if colon and number.isdigit() and (":" not in name or name.startswith("[")):
        if int(number) != port:
            return False
        exception = name
    exception = exception.removeprefix("[").removesuffix("]").removeprefix("*")
    if address is not None:
        return _address(exception) == address
    return host == exception or host.endswith(exception if exception.startswith(".") else f".{exception}")


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
