"""Settings of the gateway, from `[gateway]`."""

import grp
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carina import access
from carina.access import Access
from carina.config import Config as Constellation
from carina.config import socket_path
from carina.errors import InvalidArgument

_KEYS: Final = ("group", "grace", "stall_timeout")
_METRICS: Final = ("address",)
DEFAULT_GRACE: Final = 5.0
DEFAULT_STALL: Final = 30.0
MAX_GRACE: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path
    """Directory of this service alone."""
    address: str
    metadata: str
    images: str
    tasks: str
    """Addresses of the services behind the gateway."""
    gid: int | None = None
    """Members of this group may connect, besides root and the gateway's own user and group."""
    grace: float = DEFAULT_GRACE
    """Seconds that calls in flight have when the gateway is stopped."""
    metrics: tuple[str, ...] = ()
    """Where Prometheus finds the metrics: `unix:///path`, or address and port of this machine itself."""
    stall_timeout: float = DEFAULT_STALL
    """Seconds without any answer after which a service counts as dead; 0: it is waited for."""

    access: Access = field(default_factory=Access)
    """Sockets and namespaces of tenants."""

    @property
    def upstreams(self) -> dict[str, str]:
        """Daemon -> address."""
        return {"metadatad": self.metadata, "imaged": self.images, "taskd": self.tasks}


def read(constellation: Constellation, *, group: str | None = None) -> Config:
    """The settings of the gateway; a `group` given here wins.

    Raises:
        InvalidArgument: a value is not what its key needs, or a key is unknown.
    """
    table = constellation.section("gateway")
    for key in table:
        if key not in _KEYS:
            raise InvalidArgument(f"gateway.{key} is not a setting: expected one of {', '.join(_KEYS)}")
    return Config(
        root=constellation.root / "gatewayd",
        address=constellation.services["gateway"],
        metadata=constellation.services["metadata"],
        images=constellation.services["images"],
        tasks=constellation.services["tasks"],
        gid=_gid(table.get("group") if group is None else int(group) if group.isdecimal() else group),
        grace=_seconds(table, "grace", DEFAULT_GRACE),
        metrics=_metrics(constellation.section("metrics")),
        stall_timeout=_seconds(table, "stall_timeout", DEFAULT_STALL),
        access=access.read(constellation),
    )


def _metrics(table: Mapping[str, Any]) -> tuple[str, ...]:
    for key in table:
        if key not in _METRICS:
            raise InvalidArgument(f"metrics.{key} is not a setting: expected one of {', '.join(_METRICS)}")
    value = table.get("address", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidArgument("metrics.address must be an address, or a list of them")
    for text in filter(None, texts):
        if text.startswith(("unix://", "/")):
            socket_path(text)
        else:
            loopback(text)
    return tuple(filter(None, texts))


def loopback(address: str) -> tuple[str, int]:
    """Host and port in `127.0.0.1:1338` or `[::1]:1338`.

    Raises:
        InvalidArgument: it is not that, or not an address of this machine alone: who asks is not asked who they are.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        number, found = int(port), ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        number = 0
    if not 0 < number < 1 << 16:
        raise InvalidArgument(f"metrics.address {address!r} is not valid: expected unix:///path or 127.0.0.1:PORT")
    if not found.is_loopback:
        raise InvalidArgument(
            f"metrics.address {address!r} can be reached from other machines: expected 127.0.0.1:PORT"
        )
    return str(found), number


def _seconds(table: Mapping[str, Any], key: str, default: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_GRACE:
        raise InvalidArgument(f"gateway.{key} must be a number of seconds from 0 to {MAX_GRACE:g}")
    return float(value)


def _gid(group: object) -> int | None:
    """A group by name or number."""
    if group is None:
        return None
    if isinstance(group, int) and not isinstance(group, bool) and 0 <= group < 1 << 32:
        return group
    if isinstance(group, str):
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            pass
    raise InvalidArgument(f"gateway.group {group!r} is not a group of this system")
