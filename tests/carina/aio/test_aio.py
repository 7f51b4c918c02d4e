"""Locks by key, threads that are waited for, and cancellation that waits."""

import asyncio
import threading
import time
from contextvars import ContextVar

import pytest

from carina.aio.finish import finish, or_undo
from carina.aio.locks import KeyedLock
from carina.aio.threads import SIZE, in_thread
from carina.errors import Unavailable


async def test_a_key_is_held_by_one_at_a_time() -> None:
    """Blocks under one key run one after another, in the order of asking; other keys are free; nothing is left."""
    locks, order = KeyedLock(), []

    async def work(key: str, number: int) -> None:
        async with locks.hold(key):
            order.append((key, number))
            await asyncio.sleep(0.01)

    await asyncio.gather(*(work(key, number) for number in range(5) for key in "ab"))

    assert [number for key, number in order if key == "a"] == list(range(5))
    assert {key for key, _ in order[:2]} == {"a", "b"}
    assert len(locks) == 0


async def test_who_waits_too_long_is_told_what_is_locked() -> None:
    """After the deadline of the lock: Unavailable, and the holder is undisturbed."""
    locks = KeyedLock("snapshot")
    async with locks.hold("k1"):
        with pytest.raises(Unavailable, match="snapshot k1 is locked"):
            async with locks.hold("k1", seconds=0.02):
                pass
        assert locks.locked("k1")
    assert not locks.locked("k1")
    assert len(locks) == 0


async def test_a_waiter_that_is_cancelled_leaves_the_lock_alone() -> None:
    """Cancelling a waiter neither takes nor breaks the lock."""
    locks = KeyedLock()
    async with locks.hold("k"):
        waiting = asyncio.create_task(locks.hold("k").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with locks.hold("k", seconds=0.1):
        pass
    assert len(locks) == 0


async def test_work_in_a_thread_gives_its_result_and_its_error() -> None:
    """What a function returns or raises in a thread is what the caller gets, with the caller's context."""
    variable: ContextVar[int] = ContextVar("variable", default=0)
    variable.set(7)

    assert await in_thread(lambda: (variable.get(), threading.current_thread() is threading.main_thread())) == (
        7,
        False,
    )
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


async def test_a_thread_is_waited_for_even_when_cancelled() -> None:
    """The cancellation of the caller is delivered after the thread's end, never before."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.1)
        done.set()

    task = asyncio.create_task(in_thread(work))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_threads_are_bounded() -> None:
    """However much work there is, no more than the pool's number of threads run."""
    running, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with guard:
            running -= 1

    await asyncio.gather(*(in_thread(work) for _ in range(200)))

    assert most <= SIZE


async def test_finish_completes_before_it_is_cancelled() -> None:
    """A critical pair of steps is both or neither; the cancellation comes afterwards."""
    steps = []

    async def pair() -> None:
        steps.append("rename")
        await asyncio.sleep(0.02)
        steps.append("record")

    task = asyncio.create_task(finish(pair()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert steps == ["rename", "record"]


async def test_finish_gives_results_and_errors() -> None:
    """Without a cancellation it is as if the work had been awaited; with one, its error is the cancellation's cause."""

    async def work(answer: object) -> object:
        await asyncio.sleep(0.01)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await finish(work(5)) == 5
    with pytest.raises(ValueError, match="x"):
        await finish(work(ValueError("x")))
    task = asyncio.create_task(finish(work(ValueError("y"))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, ValueError) or caught.value.__cause__ is None


async def test_what_was_made_in_spite_of_a_cancellation_is_undone() -> None:
    """Cancelled in the middle, work is completed, then undone; work that is not cancelled, or fails, is not undone."""
    undone: list[int] = []

    async def work(result: int) -> int:
        await asyncio.sleep(0.02)
        if result < 0:
            raise Unavailable("gone")
        return result

    async def undo(result: int) -> None:
        undone.append(result)

    assert await or_undo(work(1), undo) == 1
    for result in (2, -1):
        task = asyncio.create_task(or_undo(work(result), undo))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert undone == [2]
