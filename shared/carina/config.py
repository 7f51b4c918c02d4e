"""The configuration: one TOML file, a section per service, everything optional.

root = "/var/lib/carina"            # what survives a reboot
state = "/run/carina"               # sockets and bundles
[services.content]                  # ours: started by `carina up`, unless `external = true`
address = "unix:///run/carina/contentd.sock"
[services.snapshots.overlayfs]
[proxy_plugins.demo]                # somebody else's
type = "snapshot"
address = "unix:///tmp/demo.sock"
[content]                           # settings of one service
[log]                               # of all of them
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from carina.context import validate_identifier
from carina.errors import InvalidArgument, NotFound, PermissionDenied
from carina.log import FORMATS, LEVELS
from carina.log import Settings as Log

DEFAULT_PATH: Final = Path("/etc/carina/config.toml")
DEFAULT_ROOT: Final = Path("/var/lib/carina")
DEFAULT_STATE: Final = Path("/run/carina")
DAEMONS: Final = MappingProxyType(
    {
        "content": "contentd",
        "metadata": "metadatad",
        "images": "imaged",
        "tasks": "taskd",
        "gateway": "gatewayd",
    }
)
"""Service in the configuration -> daemon. Snapshotters are `snapshots.NAME` -> `snapshotd-NAME`."""
DEFAULT_SNAPSHOTTERS: Final = ("overlayfs", "native")
SECTIONS: Final = ("content", "snapshots", "metadata", "images", "tasks", "gateway", "metrics")
PLUGIN_TYPES: Final = ("snapshot", "content", "diff", "sandbox")
RESERVED: Final = frozenset((*DAEMONS.values(), "carina", "content", "shim", "walking"))
"""Names that parts of the constellation have in Health and Introspection, and no plugin can."""
_PLUGIN_KEYS: Final = ("type", "address", "namespace", "snapshotter", "lease", "platform")
OWN_SOCKETS: Final = ("contentd.fd.sock", "notify.sock")
"""Sockets in the state directory that are no service's address."""
MAX_SOCKET_PATH: Final = 107
"""Bytes of a unix socket's path (unix(7): sun_path holds 108 with the terminating zero)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlugin:
    """An external back end. `namespace`, `snapshotter` and `lease` go along with every call to it, where set.

    `platform`, `exports` and `capabilities` are reported of it, as containerd does: few plugins describe themselves.
    """

    name: str
    type: str
    address: str
    namespace: str = ""
    snapshotter: str = ""
    lease: str = ""
    platform: str = ""
    """`os/architecture[/variant]`; empty: this machine's."""
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path = DEFAULT_ROOT
    state: Path = DEFAULT_STATE
    path: Path | None = None
    """The file that this was read from."""
    services: Mapping[str, str] = field(default_factory=dict)
    """Service (`content`, `snapshots.overlayfs`, ...) -> address, `unix:///path`."""
    external: frozenset[str] = frozenset()
    """Services that somebody else starts."""
    proxy_plugins: Mapping[str, ProxyPlugin] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    access: Mapping[str, Any] = field(default_factory=dict)
    """Who may do what, as the file has it (`carina.access`)."""
    log: Log = field(default_factory=Log)

    def section(self, name: str) -> Mapping[str, Any]:
        """The settings of one service; empty where the file has none."""
        return self.sections.get(name, {})

    @property
    def snapshotters(self) -> list[str]:
        """Names of the configured snapshotters that are services of the constellation."""
        return [name.partition(".")[2] for name in self.services if name.startswith("snapshots.")]

    @property
    def gateway(self) -> str:
        """Address of the gateway."""
        return self.services["gateway"]


def daemon(service: str) -> str:
    """The name of a service's process and socket: `content` -> `contentd`, `snapshots.native` -> `snapshotd-native`."""
    kind, _, name = service.partition(".")
    return f"snapshotd-{name}" if kind == "snapshots" else DAEMONS[kind]


def socket_path(address: str) -> Path:
    """The path in `unix:///path` (or a bare path).

    Raises:
        InvalidArgument: another scheme, a relative or abstract path, or one longer than a socket's path can be.
    """
    text = address.removeprefix("unix://")
    if "://" in text or not text.startswith("/"):
        raise InvalidArgument(f"address {address!r} is not valid: expected unix:///path/of/socket")
    if len(text.encode()) > MAX_SOCKET_PATH:
        raise InvalidArgument(
            f"socket path {text} is {len(text.encode())} bytes long, a unix socket's path has at most {MAX_SOCKET_PATH}"
        )
    return Path(text)


def events_path(gateway: str) -> Path:
    """Where shims publish events: beside the gateway's socket.

    Raises:
        InvalidArgument: as `socket_path` does.
    """
    return socket_path(f"{gateway}.ttrpc")


def load(path: Path | None = None, *, root: Path | None = None, state: Path | None = None) -> Config:
    """Read the configuration; `root` and `state` given here win.

    Without `path`, /etc/carina/config.toml is read where it exists.

    Raises:
        NotFound: the file that was asked for is not there.
        InvalidArgument: it says something that can't be; the sentence names file and key.
    """
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    table = _read(path) if path else {}
    where = str(path) if path else "configuration"
    root = (root or Path(_text(table, "root", where, str(DEFAULT_ROOT)))).absolute()
    state = (state or Path(_text(table, "state", where, str(DEFAULT_STATE)))).absolute()
    _separate(root, state, where)
    known = {"root", "state", "services", "proxy_plugins", "access", "log", *SECTIONS}
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{where}: unknown key {key!r}: expected one of {', '.join(sorted(known))}")
    services, external = _services(_table(table, "services", where), state, where)
    return Config(
        root=root,
        state=state,
        path=path,
        services=services,
        external=external,
        proxy_plugins=_proxy_plugins(_table(table, "proxy_plugins", where), services, where),
        sections={name: _table(table, name, where) for name in SECTIONS},
        access=_table(table, "access", where),
        log=_log(_table(table, "log", where), services, f"{where}: log"),
    )


def _log(table: Mapping[str, Any], services: Mapping[str, str], where: str) -> Log:
    _only(table, ("format", "level", "levels"), where)
    own = _table(table, "levels", where)
    _only(own, ["snapshotd", "carina", *map(daemon, services)], f"{where}.levels")
    chosen = {name: _choice(own, name, f"{where}.levels", LEVELS, "info") for name in own}
    return Log(
        format=_choice(table, "format", where, FORMATS, "text"),
        level=_choice(table, "level", where, LEVELS, "info"),
        levels=chosen,
    )


def _choice(table: Mapping[str, Any], key: str, where: str, choices: Iterable[str], default: str) -> str:
    value = _text(table, key, where, default)
    if value not in choices:
        raise InvalidArgument(f"{where}: {key} {value!r} is not one of {', '.join(choices)}")
    return value


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # clients that are told the address read no file

    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFound(f"configuration file {path} does not exist") from error
    except PermissionError as error:
        raise PermissionDenied(f"configuration file {path} is not readable") from error
    except OSError as error:
        raise InvalidArgument(f"configuration file {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"configuration file {path} is not TOML: {error}") from error


def _table(table: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where}: {key} must be a table")
    return value


def _only(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{where}: unknown key {key!r}: expected one of {', '.join(known)}")


def _text(table: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: {key} must be a string")
    if key in table and not value and key in ("root", "state", "address"):
        raise InvalidArgument(f"{where}: {key} must not be empty")
    return value


def _services(table: Mapping[str, Any], state: Path, where: str) -> tuple[dict[str, str], frozenset[str]]:
    entries: dict[str, Mapping[str, Any]] = {}
    for name in table:
        if name not in DAEMONS and name != "snapshots":
            expected = ", ".join((*DAEMONS, "snapshots.NAME"))
            raise InvalidArgument(f"{where}: services.{name} is not a service: expected one of {expected}")
    snapshots = _table(table, "snapshots", f"{where}: services") or {name: {} for name in DEFAULT_SNAPSHOTTERS}
    for name in DAEMONS:
        entries[name] = _table(table, name, f"{where}: services")
    for name in snapshots:
        validate_identifier(name, f"{where}: name of services.snapshots.{name}")
        entries[f"snapshots.{name}"] = _table(snapshots, name, f"{where}: services.snapshots")
    addresses: dict[str, str] = {}
    taken = {state / name: f"the state directory's {name}" for name in OWN_SOCKETS}
    external = set()
    for name, entry in entries.items():
        here = f"{where}: services.{name}"
        _only(entry, ("address", "external"), here)
        socket = "carina" if name == "gateway" else daemon(name)
        address = _text(entry, "address", here, f"unix://{state / socket}.sock")
        _take(taken, socket_path(address), f"services.{name}", where)
        if name == "gateway":
            _take(taken, events_path(address), "the events of shims, beside services.gateway", where)
        addresses[name] = address
        if not isinstance(entry.get("external", False), bool):
            raise InvalidArgument(f"{here}: external must be true or false")
        if entry.get("external"):
            external.add(name)
    return addresses, frozenset(external)


def _take(taken: dict[Path, str], path: Path, who: str, where: str) -> None:
    """One socket, one listener, whichever way its path is written."""
    path = Path(os.path.normpath(path))
    if path in taken:
        raise InvalidArgument(f"{where}: {who}: address unix://{path} is that of {taken[path]}")
    taken[path] = who


def _separate(root: Path, state: Path, where: str) -> None:
    if os.path.realpath(root) == os.path.realpath(state):
        raise InvalidArgument(f"{where}: root and state are both {root}: they must be two directories")


def _proxy_plugins(table: Mapping[str, Any], services: Mapping[str, str], where: str) -> dict[str, ProxyPlugin]:
    plugins: dict[str, ProxyPlugin] = {}
    for name in table:
        entry = _table(table, name, f"{where}: proxy_plugins")
        here = f"{where}: proxy_plugins.{name}"
        _only(entry, (*_PLUGIN_KEYS, "exports", "capabilities"), here)
        fields = {key: _text(entry, key, here) for key in _PLUGIN_KEYS}
        exports, capabilities = entry.get("exports", {}), entry.get("capabilities", [])
        if not isinstance(exports, dict) or not all(isinstance(value, str) for value in exports.values()):
            raise InvalidArgument(f"{here}: exports must be a table of strings")
        if not isinstance(capabilities, list) or not all(isinstance(value, str) for value in capabilities):
            raise InvalidArgument(f"{here}: capabilities must be a list of strings")
        plugin = ProxyPlugin(name=name, **fields, exports=exports, capabilities=tuple(capabilities))
        try:
            validate_plugin(plugin, services, plugins.values())
        except InvalidArgument as error:
            raise InvalidArgument(f"{here}: {error}") from error
        plugins[name] = plugin
    return plugins


def validate_plugin(plugin: ProxyPlugin, services: Mapping[str, str], others: Iterable[ProxyPlugin]) -> None:
    """Check a plugin alone, against the services of the constellation, and against other plugins.

    Raises:
        InvalidArgument: a value can't be, or two of them contradict each other.
    """
    validate_identifier(plugin.name, "name")
    if plugin.name in RESERVED or f"snapshots.{plugin.name}" in services:
        raise InvalidArgument(f"the name {plugin.name!r} is that of a part of the constellation: expected another one")
    if plugin.type not in PLUGIN_TYPES:
        raise InvalidArgument(f"type {plugin.type!r} is not one of {', '.join(PLUGIN_TYPES)}")
    path = socket_path(plugin.address)
    for service, address in services.items():
        if socket_path(address) == path and not service.startswith(("content", "snapshots.")):
            raise InvalidArgument(f"address {plugin.address} is that of services.{service}, which is no back end")
    if plugin.namespace:
        validate_identifier(plugin.namespace, "namespace")
    if plugin.lease and not plugin.namespace:
        raise InvalidArgument("lease needs namespace: a lease is in one")
    if plugin.snapshotter and plugin.type != "snapshot":
        raise InvalidArgument(f"snapshotter is for plugins of type snapshot, and this one's is {plugin.type}")
    if plugin.platform:
        from carina.platforms import Platform

        Platform.parse(plugin.platform)
    if not all((*plugin.exports, *plugin.capabilities)):
        raise InvalidArgument("a capability, or the name of an export, must not be empty")
    for other in others:
        if _same(plugin, other):
            raise InvalidArgument(f"it is the same back end as proxy_plugins.{other.name}")


def _same(one: ProxyPlugin, other: ProxyPlugin) -> bool:
    """Whether two plugins would be one back end with two owners."""
    if (one.type, one.namespace, socket_path(one.address)) != (other.type, other.namespace, socket_path(other.address)):
        return False
    return one.type in {"content", "diff"} or (one.snapshotter or one.name) == (other.snapshotter or other.name)
