"""Settings of one snapshotter, from `[snapshots.NAME]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carina.config import Config as Constellation
from carina.config import daemon
from carina.errors import InvalidArgument
from snapshotd.drivers import Driver
from snapshotd.native import Native
from snapshotd.overlay import Overlay
from snapshotd.snapshotter import Settings

DRIVERS: Final = ("overlayfs", "native")
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

    def make_driver(self) -> Driver:
        return Overlay(self.mount_options) if self.driver == "overlayfs" else Native()


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
    known = {"driver", "upperdir_label", "sync_remove", "durable", "mount_options"}
    if unknown := sorted(table.keys() - known):
        raise InvalidArgument(f"{where}.{unknown[0]} is not a setting: expected one of {', '.join(sorted(known))}")
    driver = table.get("driver", name)
    if driver not in DRIVERS:
        raise InvalidArgument(f"{where}.driver is {driver!r}: expected one of {', '.join(DRIVERS)}")
    service = f"snapshots.{name}"
    state = constellation.state
    return Config(
        name=name,
        driver=driver,
        root=constellation.root / daemon(service),
        address=constellation.services.get(service, f"unix://{state / daemon(service)}.sock"),
        settings=Settings(
            upperdir_label=_flag(table, "upperdir_label", where, default=False),
            sync_remove=_flag(table, "sync_remove", where, default=False),
            durable=_flag(table, "durable", where, default=True),
        ),
        mount_options=_options(table, where),
    )


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
