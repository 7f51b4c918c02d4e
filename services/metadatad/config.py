"""Settings of the metadata service, from `[metadata]`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from carina import access
from carina.config import Config as Constellation
from carina.errors import InvalidArgument
from metadatad.backends import Settings
from metadatad.collector import Schedule
from metadatad.edges import parse_duration
from metadatad.eventlog import Limits

_SETTINGS: Final = {"events_kept": "events", "events_kept_bytes": "bytes"}
_MOST: Final = 1 << 40
_SECONDS: Final = ("answer_seconds", "work_seconds")
_KEYS: Final = (*_SETTINGS, *_SECONDS, "content", "content_sharing_policy", "gc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path
    """Directory of this service alone."""
    address: str
    constellation: Constellation
    """Where the back ends are."""
    events: Limits = field(default_factory=Limits)
    """What the log of events keeps; older ones are trimmed."""
    backends: Settings = field(default_factory=Settings)
    gc: Schedule = field(default_factory=Schedule)

    @property
    def database(self) -> Path:
        return self.root / "metadata.sqlite"


def read(constellation: Constellation) -> Config:
    """The settings of the metadata service.

    Raises:
        InvalidArgument: a value is not what its key needs.
    """
    table = constellation.section("metadata")
    for key in table:
        if key not in _KEYS:
            raise InvalidArgument(f"metadata.{key} is not a setting: expected one of {', '.join(_KEYS)}")
    kept = {name: _number(table, key) for key, name in _SETTINGS.items() if key in table}
    return Config(
        root=constellation.root / "metadatad",
        address=constellation.services["metadata"],
        constellation=constellation,
        backends=replace(_backends(table), isolated=access.read(constellation).restricted),
        gc=_schedule(table.get("gc", {})),
        events=Limits(**kept),
    )


def _backends(table: Mapping[str, Any]) -> Settings:
    policy = table.get("content_sharing_policy", "shared")
    if policy not in {"shared", "isolated"}:
        raise InvalidArgument(f"metadata.content_sharing_policy {policy!r} is neither shared nor isolated")
    content = table.get("content", "")
    if not isinstance(content, str):
        raise InvalidArgument("metadata.content must be the name of a proxy plugin")
    seconds: dict[str, Any] = {key: _amount(table[key], f"metadata.{key}") for key in _SECONDS if key in table}
    return Settings(shared=policy == "shared", content=content, **seconds)


def _schedule(table: Any) -> Schedule:
    """containerd's keys and forms: thresholds are numbers, delays are durations such as `100ms`."""
    if not isinstance(table, dict):
        raise InvalidArgument("metadata.gc must be a table")
    known = {one.name for one in fields(Schedule)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise InvalidArgument(f"metadata.gc.{key} is not a setting: expected one of {', '.join(sorted(known))}")
        amount = _amount(value, f"metadata.gc.{key}")
        values[key] = int(amount) if key in {"deletion_threshold", "mutation_threshold"} else amount
    schedule = Schedule(**values)
    if schedule.pause_threshold > 0.5:
        raise InvalidArgument("metadata.gc.pause_threshold must be a share from 0 to 0.5")
    return schedule


def _amount(value: Any, key: str) -> float:
    """A number, or a duration as text, in seconds."""
    amount = parse_duration(value) if isinstance(value, str) else value
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < 1e9:
        raise InvalidArgument(f"{key} must be a number or duration, not below 0")
    return float(amount)


def _number(table: Mapping[str, Any], key: str) -> int:
    value = table[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
        raise InvalidArgument(f"metadata.{key} must be a whole number from 1 to {_MOST}")
    return value
