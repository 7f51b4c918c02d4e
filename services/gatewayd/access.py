"""Who may connect, and the rules of connections that are bound to namespaces. Nothing of this is paid by the others.

peer of a connection                                          may call
root, the gateway's user and group, on the gateway's socket   everything; nothing is looked at
listed for a namespace, on the gateway's socket               what the policy of that namespace allows, in it
listed for a socket of its own, or root there                 what its policy allows, in its namespace
anybody else                                                  nothing: the connection is closed

Who a peer is, is what the kernel noted when it connected. A refusal is told in the log.
"""

import grp
import logging
import pwd
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from grpclib.const import Handler

from carina.access import Grant
from carina.errors import InvalidArgument, PermissionDenied
from carina.rpc.guard import Peer
from carina.rpc.headers import Headers
from carina.rpc.sockets import admits
from gatewayd.policy import UNBOUND, Policy

NAMESPACE: Final = b"containerd-namespace"
BURST: Final = 50
"""Lines about one user's refusals in a row; further ones are counted."""
PAUSE_SECONDS: Final = 10.0

audit = logging.getLogger("carina.audit")
Filtered = Callable[[frozenset[str]], Sequence[Any]]
"""Makes the services that answer in another way to who may see these namespaces only."""


class Audit:
    """Lines about refusals: who, what, where and why. A peer can't fill the disk with them."""

    def __init__(self) -> None:
        self._users: dict[int, tuple[float, int]] = {}

    def refused(self, peer: Peer, *, socket: str, method: str = "", namespace: str = "", reason: str) -> None:
        begun, count = self._users.get(peer.uid, (0.0, 0))
        if time.monotonic() - begun > PAUSE_SECONDS:
            if count > BURST:
                audit.warning("refused: %d more calls of uid=%d", count - BURST, peer.uid)
            begun, count = time.monotonic(), 0
        self._users[peer.uid] = begun, count + 1
        if count >= BURST:
            return
        what = {"uid": peer.uid, "gid": peer.gid, "pid": peer.pid, "socket": socket}
        what |= {"method": method[:200], "namespace": namespace[:80], "reason": reason}
        told = " ".join(f"{key}={value!r}" for key, value in what.items())
        audit.warning("refused: %s", told, extra={f"audit_{key}": value for key, value in what.items()})


class Admission:
    """`carina.rpc.guard.Admission` of one socket.

    Args:
        gid: members of this group may do everything; None where nobody may because of a group.
        all_in: whether root, and who is in that group, are free of rules here.
    """

    def __init__(
        self, socket: str, grants: Sequence[Grant], audit: Audit, filtered: Filtered, *, all_in: bool, gid: int | None
    ) -> None:
        self._socket = socket
        self._audit = audit
        self._filtered = filtered
        self._all_in = all_in
        self._gid = gid
        self._grants = [(grant, _uids(grant), _gids(grant), Policy(grant.allow, grant.where)) for grant in grants]

    def __call__(self, peer: Peer) -> "Rules | None":
        trusted = admits(peer, gid=self._gid) if self._all_in else peer.uid == 0
        if trusted and self._all_in:
            return None
        policies = {
            grant.namespace: policy
            for grant, uids, gids, policy in self._grants
            if trusted or peer.uid in uids or any(peer.is_in(gid) for gid in gids)
        }
        if not policies:
            self._audit.refused(peer, socket=self._socket, reason="no right to this socket")
            raise PermissionDenied(f"{self._socket} is not for user {peer.uid}")
        return Rules(peer, policies, self._filtered(frozenset(policies)), socket=self._socket, audit=self._audit)


class Rules:
    """`carina.rpc.guard.Guard` of a connection that is bound to namespaces."""

    def __init__(
        self, peer: Peer, policies: Mapping[str, Policy], filtered: Sequence[Any], *, socket: str, audit: Audit
    ) -> None:
        self._peer = peer
        self._policies = policies
        self._socket = socket
        self._audit = audit
        self.mapping: Mapping[str, Handler] = {
            path: handler for service in filtered for path, handler in service.__mapping__().items()
        }

    def refusal(self, path: str, headers: Headers) -> str:
        named = [value for name, value in headers.pairs if name == NAMESPACE]
        reason = self._reason(path, headers, named)
        if reason:
            namespace = b",".join(named).decode("utf-8", "replace")
            self._audit.refused(self._peer, socket=self._socket, method=path, namespace=namespace, reason=reason)
        return reason

    def _reason(self, path: str, headers: Headers, named: Sequence[bytes]) -> str:
        if sum(name == b":path" for name, _ in headers.pairs) != 1:
            return "the call names two methods"
        policies = list(self._policies.values())
        if named or path[1:] not in UNBOUND:
            if not named:
                return f"this connection is for namespace {', '.join(sorted(self._policies))}, and the call names none"
            # The first counts at our services, and who knows which one elsewhere.
            spaces = {value.decode("utf-8", "replace") for value in named}
            if len(spaces) > 1 or not spaces <= self._policies.keys():
                return f"this connection is for namespace {', '.join(sorted(self._policies))} only"
            policies = [self._policies[space] for space in spaces]
        if not any(policy.allows(path) for policy in policies):
            return f"{path[1:][:200]} is not allowed here"
        return ""


def _uids(grant: Grant) -> frozenset[int]:
    return frozenset(
        _number(user, lambda name: pwd.getpwnam(name).pw_uid, f"{grant.where}.users") for user in grant.users
    )


def _gids(grant: Grant) -> frozenset[int]:
    return frozenset(
        _number(group, lambda name: grp.getgrnam(name).gr_gid, f"{grant.where}.groups") for group in grant.groups
    )


def _number(word: str | int, find: Callable[[str], int], where: str) -> int:
    if isinstance(word, int) and 0 <= word < 1 << 32:
        return word
    try:
        if isinstance(word, str):
            return find(word)
    except KeyError:
        pass
    raise InvalidArgument(f"{where}: {word!r} is not known on this system")
