"""Introspection: which plugins a service is made of, as containerd names them, and how they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from carina.platforms import Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    type: str
    """`io.containerd.snapshotter.v1`, ..."""
    id: str
    requires: Sequence[str] = ()
    platforms: Sequence[Platform] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: Sequence[str] = ()
    error: str = ""
    """Empty where it works; holds "skip plugin" for what this machine can't do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecation:
    """Something in use that is going to be removed."""

    id: str
    message: str
    last_occurrence: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server says of itself."""

    uuid: str
    """The same for as long as its root directory lasts."""
    pid: int
    pidns: int
    """Inode of its pid namespace."""
    deprecations: Sequence[Deprecation] = ()


class Introspection(Protocol):
    async def plugins(self, filters: Sequence[str] = ()) -> Sequence[Plugin]:
        """Every plugin that matches one of the filters; all without filters."""
