"""`[access]` of the configuration: sockets and namespaces for some users and groups only.

[access.sockets.tenant]             # a socket of its own, which leads into one namespace
path = "/run/carina/tenant.sock"
namespace = "tenant"
users = ["alice", 1000]             # besides root and the gateway's own user
groups = ["tenants"]

[access.namespaces.other]           # a namespace that these may use on the gateway's socket, and no other namespace
users = ["bob"]
allow = ["default", "containerd.services.tasks.v1.Tasks/Create"]
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carina.config import Config, socket_path
from carina.context import validate_identifier
from carina.errors import InvalidArgument

_KEYS: Final = ("users", "groups", "allow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Who may call what in a namespace. Users and groups are as the file has them, names or numbers."""

    where: str
    """The key in the file, for sentences."""
    namespace: str
    users: tuple[str | int, ...] = ()
    groups: tuple[str | int, ...] = ()
    allow: tuple[str, ...] = ("default",)
    """`default`, full names of gRPC services, or of methods: `package.Service/Method`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    sockets: Mapping[Path, Grant] = field(default_factory=dict)
    """Sockets besides the gateway's own."""
    namespaces: tuple[Grant, ...] = ()
    """Who may use the gateway's socket for one namespace."""

    @property
    def restricted(self) -> frozenset[str]:
        """Namespaces whose content is nobody else's."""
        return frozenset(grant.namespace for grant in (*self.sockets.values(), *self.namespaces))


def read(config: Config) -> Access:
    """Raises InvalidArgument: a key is unknown, or a value is not what its key needs."""
    table = config.access
    _only(table, ("sockets", "namespaces"), "access")
    sockets: dict[Path, Grant] = {}
    taken = {socket_path(address): f"services.{service}" for service, address in config.services.items()}
    for name, entry in _tables(table, "sockets").items():
        where = f"access.sockets.{name}"
        _only(entry, ("path", "namespace", *_KEYS), where)
        if not isinstance(entry.get("path"), str) or not isinstance(entry.get("namespace"), str):
            raise InvalidArgument(f"{where} needs path and namespace, two strings")
        path = socket_path(entry["path"])
        if path in taken:
            raise InvalidArgument(f"{where}: path {path} is that of {taken[path]}")
        taken[path] = where
        sockets[path] = _grant(entry, where, entry["namespace"])
    namespaces = []
    for name, entry in _tables(table, "namespaces").items():
        _only(entry, _KEYS, f"access.namespaces.{name}")
        namespaces.append(_grant(entry, f"access.namespaces.{name}", name))
    return Access(sockets=sockets, namespaces=tuple(namespaces))


def _grant(entry: Mapping[str, Any], where: str, namespace: str) -> Grant:
    validate_identifier(namespace, f"{where}: namespace")
    return Grant(
        where=where,
        namespace=namespace,
        users=_list(entry, "users", where, (str, int)),
        groups=_list(entry, "groups", where, (str, int)),
        allow=_list(entry, "allow", where, (str,)) if "allow" in entry else ("default",),
    )


def _tables(table: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Any]]:
    entries = table.get(key, {})
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise InvalidArgument(f"access.{key} must be a table of tables")
    return entries


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{where}.{key} is not a setting: expected one of {', '.join(known)}")


def _list(entry: Mapping[str, Any], key: str, where: str, types: tuple[type, ...]) -> tuple[Any, ...]:
    found = entry.get(key, [])
    if not isinstance(found, list) or any(isinstance(one, bool) or not isinstance(one, types) for one in found):
        raise InvalidArgument(f"{where}.{key} must be a list of {' or '.join(_NAMES[type] for type in types)}")
    return tuple(found)


_NAMES: Final = {str: "names", int: "numbers"}
