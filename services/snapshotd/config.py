"""Settings of one snapshotter, from `[snapshots.NAME]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carina.config import Config as Constellation
from carina.config import daemon
from carina.errors import InvalidArgument
from snapshotd.btrfs import Btrfs
from snapshotd.drivers import Driver
from snapshotd.native import Native
from snapshotd.overlay import Overlay
from snapshotd.snapshotter import Settings

DRIVERS: Final = ("overlayfs", "native", "btrfs")
_OF_ALL: Final = frozenset({"driver", "root_path", "upperdir_label", "sync_remove", "durable"})
_OF_OVERLAYS: Final = frozenset({"mount_options", "slow_chown"})
_NAME: Final = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    name: str
    """Name of the snapshotter."""
    driver: str
    root: Path
    """Directory of this snapshotter alone."""
    address: str
    settings: Settings = field(default_factory=Settings)
    mount_options: tuple[str, ...] = ()
    slow_chown: bool = False

    def make_driver(self) -> Driver:
        if self.driver == "overlayfs":
            return Overlay(self.mount_options, slow_chown=self.slow_chown)
        return Btrfs() if self.driver == "btrfs" else Native()


def read(constellation: Constellation, name: str) -> Config:
    """The settings of snapshotter `name`.

    Raises:
        InvalidArgument: a value is not what its key needs, or a key is unknown.
    """
    if _NAME.fullmatch(name) is None or len(name) > 64:
        raise InvalidArgument(f"snapshotter name {name!r} is not valid: it must match {_NAME.pattern}")
    table = constellation.section("snapshots").get(name, {})
    where = f"snapshots.{name}"
    if not isinstance(table, dict):
        raise InvalidArgument(f"{where} must be a table")
    driver = table.get("driver", name)
    if driver not in DRIVERS:
        raise InvalidArgument(f"{where}.driver is {driver!r}: expected one of {', '.join(DRIVERS)}")
    known = _OF_OVERLAYS | _OF_ALL if driver == "overlayfs" else _OF_ALL
    if unknown := sorted(table.keys() - known):
        expected = ", ".join(sorted(known))
        raise InvalidArgument(f"{where}.{unknown[0]} is not a setting of driver {driver}: expected one of {expected}")
    service = f"snapshots.{name}"
    state = constellation.state
    return Config(
        name=name,
        driver=driver,
        root=_root(table, where) or constellation.root / daemon(service),
        address=constellation.services.get(service, f"unix://{state / daemon(service)}.sock"),
        settings=Settings(
            upperdir_label=_flag(table, "upperdir_label", where, default=False),
            sync_remove=_flag(table, "sync_remove", where, default=False),
            durable=_flag(table, "durable", where, default=True),
        ),
        mount_options=_options(table, where),
        slow_chown=_flag(table, "slow_chown", where, default=False),
    )


def _root(table: Mapping[str, Any], where: str) -> Path | None:
    value = table.get("root_path", "")
    if not isinstance(value, str) or (value and not Path(value).is_absolute()):
        raise InvalidArgument(f"{where}.root_path must be the absolute path of a directory")
    return Path(value) if value else None


def _flag(table: Mapping[str, Any], key: str, where: str, *, default: bool) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}.{key} must be true or false")
    return value


def _options(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = table.get("mount_options", [])
    if not isinstance(value, list) or not all(isinstance(option, str) and option for option in value):
        raise InvalidArgument(f"{where}.mount_options must be a list of strings")
    return tuple(value)
