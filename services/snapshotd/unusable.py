"""What is served in place of a snapshotter that can't work on this machine: every call is told why."""

from collections.abc import AsyncIterator, Mapping, Sequence

from carina.errors import FailedPrecondition
from carina.mount import Mount
from carina.snapshots import Info, Usage


class Unusable:
    """Implements `carina.snapshots.Snapshotter`."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        raise FailedPrecondition(self._reason)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        raise FailedPrecondition(self._reason)

    async def mounts(self, key: str) -> list[Mount]:
        raise FailedPrecondition(self._reason)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        raise FailedPrecondition(self._reason)

    async def remove(self, key: str) -> None:
        raise FailedPrecondition(self._reason)

    async def stat(self, key: str) -> Info:
        raise FailedPrecondition(self._reason)

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        raise FailedPrecondition(self._reason)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        raise FailedPrecondition(self._reason)
        yield

    async def usage(self, key: str) -> Usage:
        raise FailedPrecondition(self._reason)

    async def cleanup(self) -> None:
        raise FailedPrecondition(self._reason)

    async def run(self) -> None:
        """Nothing is to be freed."""

    async def close(self) -> None:
        """Nothing is open."""
