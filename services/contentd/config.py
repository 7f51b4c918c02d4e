"""Settings of contentd, from `[content]`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from carina.config import Config as Constellation
from carina.errors import InvalidArgument
from contentd.store import EXPIRY

_KEYS: Final = ("expire_ingests", "descriptor_lane")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path
    """The directory of blobs and ingests."""
    address: str
    lane: Path | None
    """Socket of the descriptor lane; None: there is none, every byte travels in messages."""
    expire_ingests: timedelta = EXPIRY
    """After this time without a write, an ingest is removed."""


def read(constellation: Constellation) -> Config:
    """The settings of this service.

    Raises:
        InvalidArgument: a value is not what its key needs, or a key is unknown.
    """
    table = constellation.section("content")
    for key in table:
        if key not in _KEYS:
            raise InvalidArgument(f"content.{key} is not a setting: expected one of {', '.join(_KEYS)}")
    lane = table.get("descriptor_lane", True)
    if not isinstance(lane, bool):
        raise InvalidArgument("content.descriptor_lane must be true or false")
    return Config(
        root=constellation.root / "contentd",
        address=constellation.services.get("content", f"unix://{constellation.state / 'contentd.sock'}"),
        lane=constellation.state / "contentd.fd.sock" if lane else None,
        expire_ingests=_hours(table),
    )


def _hours(table: Mapping[str, Any]) -> timedelta:
    value = table.get("expire_ingests", EXPIRY / timedelta(hours=1))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 24 * 3650:
        raise InvalidArgument("content.expire_ingests must be a number of hours above 0")
    return timedelta(hours=value)
