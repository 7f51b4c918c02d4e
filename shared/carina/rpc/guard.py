"""What one connection may call: decided once, when it is made, by who is at its other end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from grpclib.const import Handler

from carina.rpc.headers import Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process that connected, as the kernel knew it then (unix(7): SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """Supplementary groups."""

    def is_in(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


class Guard(Protocol):
    """The rules of a connection that may not call everything."""

    @property
    def mapping(self) -> Mapping[str, Handler]:
        """Methods that are answered for such connections in another way, by their paths."""

    def refusal(self, path: str, headers: Headers) -> str:
        """Why a call is refused; empty where it is not."""


Admission = Callable[[Peer], Guard | None]
"""The rules for a peer, None for none. Raises PermissionDenied: it may not connect."""
