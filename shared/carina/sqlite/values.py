"""How values are stored: times as whole microseconds since 1970 in UTC."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def now() -> int:
    """The present moment as stored."""
    return time.time_ns() // 1000


def from_time(moment: datetime) -> int:
    """An aware moment as stored."""
    return (moment - _EPOCH) // _MICROSECOND


def to_time(stored: int) -> datetime:
    return _EPOCH + timedelta(microseconds=stored)
