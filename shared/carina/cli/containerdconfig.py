"""containerd's configuration files, versions 2 to 4, in our words.

A table says for each key of theirs where it goes here; what is in no table is told as not taken, with the reason of
the longest prefix that has one. Nothing is left out silently.
"""

import glob
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carina.errors import InvalidArgument, NotFound, PermissionDenied

VERSIONS: Final = (2, 3, 4)
_GC: Final = "plugins/io.containerd.gc.v1.scheduler"
_OVERLAY: Final = "plugins/io.containerd.snapshotter.v1.overlayfs"
_TRANSFER: Final = "plugins/io.containerd.transfer.v1.local"
_VERIFIER: Final = "plugins/io.containerd.image-verifier.v1.bindir"
_DIFF: Final = "plugins/io.containerd.service.v1.diff-service"
_CRI2: Final = "plugins/io.containerd.grpc.v1.cri"
_CRI3: Final = "plugins/io.containerd.cri.v1.images"
_GRPC4: Final = "plugins/io.containerd.server.v1.grpc"

PLACES: Final = {
    **{
        f"{_GC}/{key}": f"metadata.gc.{key}"
        for key in ("pause_threshold", "deletion_threshold", "mutation_threshold", "schedule_delay", "startup_delay")
    },
    "plugins/io.containerd.metadata.v1.bolt/content_sharing_policy": "metadata.content_sharing_policy",
    **{
        f"{_OVERLAY}/{key}": f"snapshots.overlayfs.{key}"
        for key in ("root_path", "upperdir_label", "sync_remove", "slow_chown", "mount_options")
    },
    "plugins/io.containerd.snapshotter.v1.native/root_path": "snapshots.native.root_path",
    "plugins/io.containerd.snapshotter.v1.btrfs/root_path": "snapshots.btrfs.root_path",
    f"{_DIFF}/default": "images.diff.default",
    f"{_DIFF}/sync_fs": "images.sync_fs",
    **{
        f"{_TRANSFER}/{key}": f"images.{key}"
        for key in (
            "config_path",
            "max_concurrent_downloads",
            "max_concurrent_uploaded_layers",
            "concurrent_layer_fetch_buffer",
        )
    },
    **{f"{_VERIFIER}/{key}": f"images.verifier.{key}" for key in ("bin_dir", "max_verifiers", "per_verifier_timeout")},
    f"{_CRI2}/registry/config_path": "images.config_path",
    f"{_CRI2}/containerd/snapshotter": "images.default_snapshotter",
    f"{_CRI2}/max_concurrent_downloads": "images.max_concurrent_downloads",
    f"{_CRI3}/registry/config_path": "images.config_path",
    f"{_CRI3}/snapshotter": "images.default_snapshotter",
    f"{_CRI3}/max_concurrent_downloads": "images.max_concurrent_downloads",
    "timeouts/io.containerd.timeout.shim.cleanup": "tasks.cleanup_seconds",
    "timeouts/io.containerd.timeout.shim.load": "tasks.start_seconds",
    "timeouts/io.containerd.timeout.task.state": "tasks.state_seconds",
    "grpc/gid": "gateway.group",
    f"{_GRPC4}/gid": "gateway.group",
}
"""Key of theirs -> key of ours, with the same meaning."""

MOVES: Final = {
    "root": "root",
    "state": "state",
    "grpc/address": "services.gateway.address",
    f"{_GRPC4}/address": "services.gateway.address",
}
"""Taken only where Carina is to stand in containerd's place."""

REASONS: Final = {
    "version": "",
    "imports": "",
    "root": "containerd's data are not Carina's: with --places, once containerd is gone",
    "state": "another daemon's sockets are there: with --places, once containerd is gone",
    "temp": "temporary files lie below root",
    "grpc/address": "containerd listens there: with --places, once containerd is gone",
    f"{_GRPC4}/address": "containerd listens there: with --places, once containerd is gone",
    "grpc": "messages of up to 16 MiB, on a unix socket that root owns: there is nothing to set",
    _GRPC4: "messages of up to 16 MiB, on a unix socket that root owns: there is nothing to set",
    "plugins/io.containerd.server.v1": "there is one server, on the gateway's socket",
    "ttrpc": "shims publish events on the gateway's socket with .ttrpc at its end",
    "debug": "there is no debug socket; what services log goes where their standard error goes",
    "metrics": "metrics are not served",
    "cgroup": "the control group of the services is the service manager's to set (Slice= in a unit)",
    "oom_score": "the service manager sets it (OOMScoreAdjust= in a unit)",
    "plugin_dir": "there are no plugins in our processes: they are processes of their own, [proxy_plugins]",
    "disabled_plugins": "services that are not wanted are not started: see [services]",
    "required_plugins": "`carina up` is ready when every service is",
    "timeouts": "there is no such wait here",
    _CRI2: "Kubernetes' CRI is not here",
    _CRI3: "Kubernetes' CRI is not here",
    "plugins/io.containerd.cri.v1": "Kubernetes' CRI is not here",
    f"{_CRI2}/registry": "put into hosts.toml files in images.config_path",
    f"{_CRI3}/registry": "put into hosts.toml files in images.config_path",
    "plugins/io.containerd.grpc.v1.introspection": "there is nothing to set",
    "plugins/io.containerd.internal.v1.restart": "there is no restart monitor",
    "plugins/io.containerd.monitor": "there is no restart monitor, and metrics are not served",
    "plugins/io.containerd.internal.v1.opt": "`carina install --path` says where to",
    "plugins/io.containerd.internal.v1.tracing": "traces are passed on and not exported",
    "plugins/io.containerd.tracing": "traces are passed on and not exported",
    "plugins/io.containerd.nri": "NRI is not here",
    "plugins/io.containerd.metadata.v1.bolt": "the records are in SQLite, always synced",
    "plugins/io.containerd.runtime": "taskd decides: shims are found in PATH and in tasks.shim_directories",
    "plugins/io.containerd.shim.v1": "taskd decides: shims are found in PATH and in tasks.shim_directories",
    "plugins/io.containerd.snapshotter.v1": "there is no such setting here; other snapshotters can be plugged in",
    "plugins/io.containerd.snapshotter.v1.devmapper": "there is no devmapper here; it can be plugged in",
    "plugins/io.containerd.snapshotter.v1.zfs": "there is no zfs here; it can be plugged in",
    "plugins/io.containerd.snapshotter.v1.blockfile": "there is no blockfile here; it can be plugged in",
    "plugins/io.containerd.snapshotter.v1.erofs": "there is no erofs here; it can be plugged in",
    "plugins/io.containerd.differ.v1.erofs": "there is no erofs here; it can be plugged in",
    _TRANSFER: "layers are unpacked side by side wherever the snapshotter can, for this machine's platform",
    "plugins": "Carina has no such plugin",
}
"""Why a key, or all keys below it, are not taken; empty: nothing to tell."""
_SNAPSHOTTERS: Final = ("overlayfs", "native", "btrfs")
_PROXY_KEYS: Final = ("type", "address", "platform", "exports", "capabilities")


@dataclass(slots=True)
class Translation:
    """Our configuration, and what became of each key of theirs."""

    config: dict[str, Any] = field(default_factory=dict)
    taken: list[tuple[str, str]] = field(default_factory=list)
    """Their key, ours."""
    left: list[tuple[str, str]] = field(default_factory=list)
    """Their key, why."""

    def put(self, theirs: str, ours: str, value: Any) -> None:
        at = self.config
        *tables, last = ours.split(".")
        for table in tables:
            at = at.setdefault(table, {})
        at[last] = value
        self.taken.append((_shown(theirs), ours))


def read(path: Path) -> dict[str, Any]:
    """A file of containerd's with those that it imports.

    Raises:
        NotFound, PermissionDenied: a file can't be read.
        InvalidArgument: it is not TOML, or of another version.
    """
    table = _load(path)
    version = table.get("version", 1 if "plugins" in table else 2)
    if version not in VERSIONS:
        raise InvalidArgument(
            f"{path}: version {version} is not one of {', '.join(map(str, VERSIONS))}: "
            "`containerd config migrate` makes a newer one of it"
        )
    for pattern in table.get("imports", ()):
        for name in sorted(glob.glob(os.path.join(path.parent, str(pattern)))):
            if not os.path.samefile(name, path):
                _merge(table, _load(Path(name)))
    return table


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except PermissionError as error:
        raise PermissionDenied(f"{path} is not readable") from error
    except OSError as error:
        raise InvalidArgument(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from error


def _merge(table: dict[str, Any], over: Mapping[str, Any]) -> None:
    """As containerd merges imports: tables key by key, a plugin's settings as well."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        elif key != "version":
            table[key] = value


def translate(table: Mapping[str, Any], *, places: bool) -> Translation:
    """Our configuration from theirs. With `places`, directories and address are theirs as well."""
    made = Translation()
    rest = {key: value for key, value in table.items() if key not in ("proxy_plugins", "stream_processors")}
    for path, value in _leaves("", rest):
        _one(made, path, value, places=places)
    _plugins(made, table.get("proxy_plugins", {}))
    for name, processor in table.get("stream_processors", {}).items():
        if shutil.which(str(processor.get("path", ""))) is None:
            made.left.append((f"stream_processors.{name}", f"{processor.get('path')} is no program on this machine"))
            continue
        made.config.setdefault("images", {}).setdefault("stream_processors", {})[name] = processor
        made.taken.append((f"stream_processors.{name}", f"images.stream_processors.{name}"))
    _services(made, table)
    return made


def _one(made: Translation, path: str, value: Any, *, places: bool) -> None:
    ours = PLACES.get(path) or (MOVES.get(path) if places else None)
    if ours is None or value in ("", [], {}):
        why = _reason(path)
        if why and value not in ("", [], {}, 0, False):
            made.left.append((_shown(path), why))
        return
    if ours.endswith("_seconds"):
        value = _seconds(value)
    elif ours == "services.gateway.address":
        value = value if value.startswith("unix://") else f"unix://{value}"
    elif ours == "gateway.group":
        if not value:
            return  # root's, as ours is without a group
    elif ours == "images.config_path":
        value = value.split(":")[0] if isinstance(value, str) and ":" in value else value
    made.put(path, ours, value)


def _seconds(value: Any) -> float:
    from carina.cli.parameters import Duration

    return Duration().convert(str(value), None, None)


def _plugins(made: Translation, plugins: Mapping[str, Mapping[str, Any]]) -> None:
    for name, plugin in plugins.items():
        kept = {key: value for key, value in plugin.items() if key in _PROXY_KEYS and value}
        address = str(kept.get("address", ""))
        kept["address"] = address if address.startswith("unix://") else f"unix://{address}"
        made.config.setdefault("proxy_plugins", {})[name] = kept
        made.taken.append((f"proxy_plugins.{name}", f"proxy_plugins.{name}"))
        for key in plugin.keys() - set(_PROXY_KEYS):
            made.left.append((f"proxy_plugins.{name}.{key}", "Carina has no such setting of a plugin"))


def _services(made: Translation, table: Mapping[str, Any]) -> None:
    """Snapshotters of ours that their file switches off, or sets up."""
    disabled = {
        str(name).rpartition(".")[2] for name in table.get("disabled_plugins", ()) if "snapshotter" in str(name)
    }
    wanted = [name for name in _SNAPSHOTTERS[:2] if name not in disabled]
    if "btrfs" in made.config.get("snapshots", {}):
        wanted.append("btrfs")
    if disabled & set(_SNAPSHOTTERS) or "btrfs" in wanted:
        made.config.setdefault("services", {})["snapshots"] = {name: {} for name in wanted}


def _leaves(prefix: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping) and value:
            yield from _leaves(path, value)
        else:
            yield path, value


def _reason(path: str) -> str:
    """The reason of the longest prefix that has one."""
    best = max((key for key in REASONS if _covers(key, path)), key=len, default=None)
    return "Carina has no such setting" if best is None else REASONS[best]


def _covers(key: str, path: str) -> bool:
    return path == key or path.startswith((f"{key}/", f"{key}.")) or (key.count("/") == 1 and path.startswith(key))


def _shown(path: str) -> str:
    parts = path.split("/")
    return ".".join(f'"{part}"' if "." in part else part for part in parts)
