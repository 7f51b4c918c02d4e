"""One place where a registry is spoken to, and which one that is where nothing is configured."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ssl import SSLContext
from typing import Final
from urllib.parse import urlsplit

from imaged.certificates import Certificates

DOCKER_HUB: Final = "docker.io"
_DOCKER_HUB_HOST: Final = "registry-1.docker.io"
CAPABILITIES: Final = frozenset(("pull", "resolve", "push"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One place to ask."""

    scheme: str
    authority: str
    """Host, and port where it is not the scheme's."""
    path: str = "/v2"
    capabilities: frozenset[str] = CAPABILITIES
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: SSLContext | bool = True
    """True: what the system trusts."""
    tls_elsewhere: SSLContext | bool = True
    """The same for where this host redirects to: without a client's certificate."""
    dial_timeout: float = 0.0
    """Seconds for making a connection; 0: the usual."""
    mirrors: str = ""
    """The registry that this host stands for, where it is another one."""

    @property
    def base(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    def with_certificates(self, certificates: Certificates) -> "Host":
        """Reads files. Raises InvalidArgument for one that is of no use."""
        tls = certificates.context()
        elsewhere = certificates.anonymous().context() if certificates.pairs else tls
        return replace(self, tls=tls, tls_elsewhere=elsewhere)


def own(registry: str, scheme: str, certificates: Certificates) -> Host:
    """The registry itself: by https, on the loopback interface with a port by http, unless a scheme is asked for."""
    authority = _DOCKER_HUB_HOST if registry == DOCKER_HUB else registry
    if not scheme and is_loopback(authority) and not certificates:
        if urlsplit(f"//{authority}").port not in (None, 443):
            return Host(scheme="http", authority=authority)
        certificates = Certificates(verify=False)
    return Host(scheme=scheme or "https", authority=authority).with_certificates(certificates)


def is_loopback(authority: str) -> bool:
    """Whether a host is this machine by its name alone; nothing is looked up."""
    name = urlsplit(f"//{authority}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_url(text: str) -> bool:
    """Whether a text is a URL of http or https that one may go to."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return valid and "@" not in parts.netloc and not any(character <= " " or character == "\x7f" for character in text)
