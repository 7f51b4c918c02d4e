"""An event loop of readiness, timers and coroutines: what a shim needs of asyncio, and nothing to start up.

Everything runs in one thread. A coroutine runs until it awaits a `Future`; nothing is ever cancelled.
"""

import heapq
import itertools
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

from shimd.journal import failed

T = TypeVar("T")

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
URGENT: Final = select.EPOLLPRI
_ENDED: Final = select.EPOLLHUP | select.EPOLLERR


class Future(Generic[T]):
    """A result that comes later, once; any number of coroutines may await it."""

    __slots__ = ("_callbacks", "_error", "_loop", "_result", "done")

    def __init__(self, loop: "Loop") -> None:
        self.done = False
        self._loop = loop
        self._result: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def set(self, result: T) -> None:
        """Nothing happens where there is a result already."""
        self._settle(result, None)

    def fail(self, error: BaseException) -> None:
        self._settle(None, error)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self.done:
            return
        self.done, self._result, self._error = True, result, error
        for callback in self._callbacks:
            self._loop.soon(callback)
        self._callbacks.clear()

    def then(self, callback: Callable[[], None]) -> None:
        """Call back when there is a result, never at once."""
        if self.done:
            self._loop.soon(callback)
        else:
            self._callbacks.append(callback)

    @property
    def error(self) -> BaseException | None:
        return self._error

    def __await__(self) -> Generator["Future[Any]", None, T]:
        if not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it is None only where T allows it


class Timer:
    """A call in the future, unless it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, dict[int, Callable[[], None]]] = {}
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._stopped = False

    def future(self) -> Future[Any]:
        return Future(self)

    def soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), timer))
        return timer

    def watch(self, descriptor: int, events: int, callback: Callable[[], None]) -> None:
        """Call back whenever a descriptor is ready for `events` (one of READ, WRITE, URGENT), or has ended.

        Raises:
            PermissionError: it is a regular file, which is always ready.
        """
        callbacks = dict(self._watched.get(descriptor, {}))
        callbacks[events] = callback
        self._set(descriptor, callbacks)

    def unwatch(self, descriptor: int, events: int = READ) -> None:
        """Nothing happens where it is not watched. To be called before the descriptor is closed."""
        callbacks = dict(self._watched.get(descriptor, {}))
        if callbacks.pop(events, None) is not None:
            self._set(descriptor, callbacks)

    def _set(self, descriptor: int, callbacks: dict[int, Callable[[], None]]) -> None:
        mask = sum(callbacks)
        if not callbacks:
            del self._watched[descriptor]
            self._epoll.unregister(descriptor)
            return
        if descriptor in self._watched:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.register(descriptor, mask)
        self._watched[descriptor] = callbacks

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> Future[T]:
        """Run a coroutine. An error that nobody handles is written to the log."""
        ended: Future[T] = Future(self)

        def step() -> None:
            try:
                awaited = work.send(None)
            except StopIteration as stop:
                ended.set(stop.value)
            except Exception as error:
                failed(name, error)
                ended.fail(error)
            else:
                awaited.then(step)

        self.soon(step)
        return ended

    async def sleep(self, seconds: float) -> None:
        over = self.future()
        self.later(seconds, lambda: over.set(None))
        await over

    async def within(self, future: Future[Any], seconds: float) -> bool:
        """Wait for a result as long as this; whether it came."""
        either = self.future()
        timer = self.later(seconds, lambda: either.set(None))
        future.then(lambda: either.set(None))
        await either
        timer.cancel()
        return future.done

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        """Until `stop` is called."""
        while not self._stopped:
            for descriptor, events in self._epoll.poll(self._pause()):
                self._dispatch(descriptor, events)
            self._expire()
            for _ in range(len(self._ready)):
                self._guarded(self._ready.popleft())

    def _pause(self) -> float | None:
        if self._ready:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _expire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self._guarded(callback)

    def _dispatch(self, descriptor: int, events: int) -> None:
        for wanted, callback in list(self._watched.get(descriptor, {}).items()):
            if events & (wanted | _ENDED) and descriptor in self._watched:
                self._guarded(callback)

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            failed("a callback", error)


class Lock:
    """One holder at a time, in the order of asking."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._held = False
        self._queue: deque[Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            turn: Future[None] = self._loop.future()
            self._queue.append(turn)
            await turn
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        if self._queue:
            self._queue.popleft().set(None)  # it stays held: the next holder has it now
        else:
            self._held = False
