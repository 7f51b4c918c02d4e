"""Services that cut their caller off at one call: before it is sent, or when its answer is there."""

import asyncio
import inspect
from typing import Any


class Cut:
    """Counts the calls of all services that it stands before, and cancels `victim` at one of them."""

    def __init__(self, at: int, *, after: bool) -> None:
        self._at = at
        self._after = after
        self.victim: asyncio.Task[Any] | None = None
        self.calls = 0
        self.fired = ""

    def before(self, service: Any) -> Any:
        """The service, with this before it."""
        return _Watched(service, self)

    def call(self, name: str, *, done: bool) -> None:
        if done == self._after and self.calls == self._at and self.victim is not None and not self.fired:
            self.fired = name
            self.victim.cancel()
        self.calls += done


class _Watched:
    def __init__(self, service: Any, cut: Cut) -> None:
        self._service, self._cut = service, cut

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._service, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def watched(*args: Any, **kwargs: Any) -> Any:
            self._cut.call(name, done=False)
            try:
                return await found(*args, **kwargs)
            finally:
                self._cut.call(name, done=True)

        return watched
