"""The shim's loop: readiness, timers, coroutines."""

import os

import pytest

from shimd.loop import READ, Future, Lock, Loop


def test_coroutines_wait_for_each_other() -> None:
    """Everyone who awaits a future gets its result, before and after; errors travel too."""
    loop, seen = Loop(), list[object]()
    value: Future[int] = loop.future()

    async def wait(name: str) -> None:
        try:
            seen.append((name, await value))
        except ValueError as error:
            seen.append((name, str(error)))

    async def work() -> None:
        first = loop.spawn(wait("first"), "first")
        await loop.sleep(0)
        value.set(7)
        value.set(8)
        await first
        await loop.spawn(wait("second"), "second")
        loop.stop()

    loop.spawn(work(), "work")
    loop.run()

    assert seen == [("first", 7), ("second", 7)]


def test_a_wait_has_an_end() -> None:
    """`within` tells whether the result came in time, and later results disturb nobody."""
    loop, seen = Loop(), []

    async def work() -> None:
        late: Future[None] = loop.future()
        seen.append(await loop.within(late, 0.01))
        late.set(None)
        seen.append(await loop.within(late, 30))
        loop.stop()

    loop.spawn(work(), "work")
    loop.run()

    assert seen == [False, True]


def test_a_lock_has_one_holder_in_the_order_of_asking() -> None:
    """Nobody passes those who wait."""
    loop, seen = Loop(), []
    lock = Lock(loop)

    async def hold(name: int) -> None:
        async with lock:
            seen.append(("in", name))
            await loop.sleep(0)
            seen.append(("out", name))

    async def work() -> None:
        for held in [loop.spawn(hold(name), "hold") for name in range(4)]:
            await held
        loop.stop()

    loop.spawn(work(), "work")
    loop.run()

    assert seen == [(side, name) for name in range(4) for side in ("in", "out")]


def test_a_failing_callback_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A mistake in one callback is written to the log, and the others are called."""
    loop, seen = Loop(), []
    reader, writer = os.pipe()

    def readable() -> None:
        seen.append(os.read(reader, 1))
        loop.unwatch(reader)
        loop.later(0, loop.stop)
        raise ValueError("a mistake")

    try:
        loop.watch(reader, READ, readable)
        os.write(writer, b"x")
        loop.run()
    finally:
        os.close(reader)
        os.close(writer)

    assert seen == [b"x"]
    assert "ValueError" in capfd.readouterr().err
