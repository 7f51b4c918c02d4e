"""The gateway's sockets: its own, and one for each tenant that has one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from carina.rpc.server import Listener
from gatewayd import tenant
from gatewayd.access import Admission, Audit
from gatewayd.config import Config
from gatewayd.upstream import Upstream

GROUP: Final = 0o660
STREAM: Final = "/containerd.services.streaming.v1.Streaming/Stream"
TRANSFER: Final = "/containerd.services.transfer.v1.Transfer/Transfer"
EVERYBODY: Final = 0o666
"""Who may do what is decided when a connection is made, by who connects: no mode can say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    address: str
    mode: int
    admission: Admission


def sockets(config: Config, upstreams: Mapping[str, Upstream]) -> list[Socket]:
    """Raises InvalidArgument: a user or group is not known, or a method can't be allowed."""
    audit = Audit()

    def filtered(namespaces: frozenset[str]) -> Any:
        return tenant.services(upstreams["metadatad"], upstreams["imaged"], namespaces)

    access = config.access
    own = Admission(config.address, access.namespaces, audit, filtered, all_in=True, gid=config.gid)
    found = [Socket(address=config.address, mode=EVERYBODY if access.namespaces else GROUP, admission=own)]
    for path, grant in access.sockets.items():
        address = f"unix://{path}"
        admission = Admission(address, [grant], audit, filtered, all_in=False, gid=None)
        found.append(Socket(address=address, mode=EVERYBODY, admission=admission))
    return found


class Listeners:
    """All listeners, as one for those that look after the services behind them."""

    def __init__(self) -> None:
        self._all: list[Listener] = []

    def add(self, listener: Listener) -> None:
        self._all.append(listener)

    @property
    def health(self) -> "Listeners":
        return self

    def set(self, name: str, serving: bool | None) -> None:
        for listener in self._all:
            listener.health.set(name, serving)

    def unpaired_streams(self, address: str) -> int:
        """See `gatewayd.swapping.Listener`."""
        count = 0
        for listener in self._all:
            calls: dict[int, set[str]] = {}
            for connection, path in listener.relays_to(address):
                calls.setdefault(id(connection), set()).add(path)
            count += sum(STREAM in paths and TRANSFER not in paths for paths in calls.values())
        return count

    def give_up(self, address: str, text: str) -> None:
        for listener in self._all:
            listener.give_up(address, text)
