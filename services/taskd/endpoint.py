"""A shim that is there already, which a task is to be created on."""

from dataclasses import dataclass
from pathlib import Path

from taskd.bundle import Bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    bootstrap: Bootstrap
    binary: Path | None = None
    """The shim's binary, where it is known: it cleans up after the shim."""
