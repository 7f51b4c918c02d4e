"""The settings of taskd: section `[tasks]`, everything optional.

start_seconds = 30      # for a shim to start and answer for the first time
create_seconds = 300    # for a shim to create a container
call_seconds = 60       # for any other call to a shim
state_seconds = 2       # for a shim to say how a process is; then the answer is "unknown"
cleanup_seconds = 30    # for `shim delete` after a shim's death
exit_event_seconds = 10 # after which an exit that the shim has not reported is reported for it
restart_interval_seconds = 10   # between two looks at containers with restart labels
shim_directories = []   # where to look for shims beside PATH
events_kept = 100000    # events that may wait for metadatad
events_kept_bytes = 67108864    # bytes that they may take
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from carina import access
from carina.config import Config as Constellation
from carina.config import socket_path
from carina.errors import InvalidArgument
from taskd.outbox import Limits

_LIMITS: Final = {"events_kept": "events", "events_kept_bytes": "bytes"}
_MOST: Final = 1 << 40
BUNDLES: Final = "io.containerd.runtime.v2.task"
SANDBOXES: Final = "io.containerd.sandbox.controller.v1.shim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path
    """`<root>/taskd`."""
    state: Path
    address: str
    """Where this service listens."""
    metadata: str
    """Address of metadatad."""
    gateway: Path
    """The socket that shims are told of; events go to the one beside it, with `.ttrpc` at the end."""
    start_seconds: float = 30.0
    create_seconds: float = 300.0
    call_seconds: float = 60.0
    state_seconds: float = 2.0
    cleanup_seconds: float = 30.0
    exit_event_seconds: float = 10.0
    restart_interval_seconds: float = 10.0
    tenants: frozenset[str] = frozenset()
    """Namespaces in which others than administrators may write records."""
    shim_directories: tuple[str, ...] = ()
    events: Limits = field(default_factory=Limits)
    """What may wait for metadatad."""

    @property
    def bundles(self) -> Path:
        return self.state / BUNDLES

    @property
    def sandboxes(self) -> Path:
        """The bundles of sandboxes."""
        return self.state / SANDBOXES

    @property
    def sandbox_work(self) -> Path:
        return self.root / "sandboxes"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def events_socket(self) -> Path:
        return self.gateway.with_name(self.gateway.name + ".ttrpc")

    @property
    def publisher(self) -> Path:
        """The executable that shims may publish events with."""
        return self.root / "publish"

    @property
    def runc_root(self) -> Path:
        return self.state / "runc"


def from_constellation(constellation: Constellation) -> Config:
    """Take what concerns taskd.

    Raises:
        InvalidArgument: a setting is unknown or of the wrong type.
    """
    section = constellation.section("tasks")
    root = constellation.root / "taskd"
    seconds = [one.name for one in fields(Config) if one.name.endswith("_seconds")]
    known = [*seconds, "shim_directories", *_LIMITS]
    for key in section:
        if key not in known:
            expected = ", ".join(known)
            raise InvalidArgument(f"configuration: tasks.{key} is not a setting: expected one of {expected}")
    return Config(
        root=root,
        state=constellation.state,
        address=constellation.services["tasks"],
        metadata=constellation.services["metadata"],
        gateway=socket_path(constellation.gateway),
        shim_directories=_directories(section),
        events=Limits(**{name: _amount(section, key) for key, name in _LIMITS.items() if key in section}),
        tenants=access.read(constellation).restricted,
        **{key: _seconds(section, key) for key in seconds if key in section},
    )


def read(constellation: Constellation) -> Config:
    """See `from_constellation`."""
    return from_constellation(constellation)


def _seconds(section: Mapping[str, Any], key: str) -> float:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86400:
        raise InvalidArgument(f"configuration: tasks.{key} must be a number of seconds above 0 and up to a day")
    return float(value)


def _amount(section: Mapping[str, Any], key: str) -> int:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise InvalidArgument(f"configuration: tasks.{key} must be a whole number from 1 to {_MOST}")
    return value


def _directories(section: Mapping[str, Any]) -> tuple[str, ...]:
    value = section.get("shim_directories", [])
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.startswith("/") for entry in value):
        raise InvalidArgument("configuration: tasks.shim_directories must be a list of absolute paths")
    return tuple(value)
