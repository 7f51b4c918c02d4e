"""A registry of back ends that is a list."""

from collections.abc import Sequence

from carina.backends import Backend, Reloaded
from carina.errors import Unavailable, Unimplemented


class Listed:
    """`carina.backends.BackendRegistry` for those who only look something up in it."""

    def __init__(self, *backends: Backend) -> None:
        self.backends = list(backends)
        self.asked = 0
        self.away = False
        """Whether it answers nothing."""

    async def list(self) -> Sequence[Backend]:
        self.asked += 1
        if self.away:
            raise Unavailable("the registry is away")
        return self.backends

    async def add(self, backend: Backend) -> Backend:
        raise Unimplemented("add")

    async def remove(self, type: str, name: str, *, force: bool = False) -> None:
        raise Unimplemented("remove")

    async def reload(self) -> Reloaded:
        raise Unimplemented("reload")
