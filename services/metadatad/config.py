"""Settings of the metadata service, from `[metadata]`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carina.config import Config as Constellation
from carina.errors import InvalidArgument

_SETTINGS: Final = ("events_kept", "events_waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path
    """Directory of this service alone."""
    address: str
    constellation: Constellation
    """Where the back ends are."""
    events_kept: int = 10_000
    """Events in the log; older ones are trimmed."""
    events_waiting: int = 4096
    """Events that may wait for one subscriber before it is cut off."""

    @property
    def database(self) -> Path:
        return self.root / "metadata.sqlite"


def read(constellation: Constellation) -> Config:
    """The settings of the metadata service.

    Raises:
        InvalidArgument: a value is not what its key needs.
    """
    table = constellation.section("metadata")
    numbers = {key: _number(table, key) for key in _SETTINGS if key in table}
    return Config(
        root=constellation.root / "metadatad",
        address=constellation.services["metadata"],
        constellation=constellation,
        **numbers,
    )


def _number(table: Mapping[str, Any], key: str) -> int:
    value = table[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000_000:
        raise InvalidArgument(f"metadata.{key} must be a whole number from 1 to 10000000")
    return value
