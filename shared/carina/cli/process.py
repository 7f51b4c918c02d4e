"""A container's process in the foreground: its streams, our signals, its end."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import click

from carina import context
from carina.errors import CarinaError, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from carina.client import Client
    from carina.client.stdio import Streams
    from carina.containers import Container
    from carina.tasks import Exit, Stdio

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED: Final = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE: Final = 3
"""The signal of ENDING with which a process that doesn't heed them is killed."""
OUTAGE: Final = 30.0
"""Seconds for which services may be away while we wait for a process."""
CLEAN_UP: Final = 10.0
"""Seconds for each call that removes what an interrupted command has made."""


class Signals:
    """What our signals do, for the whole of a command.

    They cancel the command's work, so that it removes what it has made;
    as long as a process of a container runs in the foreground, they are passed on to that.
    """

    def __init__(self) -> None:
        self.forward: Callable[[int], None] | None = None
        self._work: asyncio.Task[Any] | None = None
        self._received = 0
        self._cancelled_by = 0
        self._numbers: list[int] = []

    def _receive(self, number: int) -> None:
        self._received += number in ENDING
        if self.forward is not None and self._received < PATIENCE:
            self.forward(number)
        elif number in ENDING and not self._cancelled_by and self._work is not None:
            self._cancelled_by = number
            self._work.cancel()

    async def __aenter__(self) -> Self:
        self._work = asyncio.current_task()
        # What our parent has us ignore (nohup, a shell's background) stays ignored.
        self._numbers = [number for number in PASSED if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for number in self._numbers:
            asyncio.get_running_loop().remove_signal_handler(number)
        # A call that was cut off may fail in its own way; that is no news to whoever cut it off.
        if self._cancelled_by and kind is not None and issubclass(kind, asyncio.CancelledError | CarinaError):
            raise click.exceptions.Exit(128 + self._cancelled_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreground:
    """One process of a container, the first or (with `exec_id`) a further one, run for as long as we do."""

    client: "Client"
    signals: Signals
    id: str
    exec_id: str = ""
    tty: bool = False

    async def run(self, make: "Callable[[Stdio], Coroutine[Any, Any, object]]") -> int:
        """Make the process, start it, copy its streams until it ends, delete it; returns its exit status.

        A process whose output can't be written any more, or for which we can't wait, is killed and deleted.
        """
        from carina.aio.finish import or_undo
        from carina.client.stdio import streams

        async with streams(self.client.fifo_directory, terminal=self.tty, stdin=True) as pipes:
            await or_undo(make(pipes.stdio), lambda _: self.discard())
            try:
                status = await self._attend(pipes)
                await self.client.tasks.delete(self.id, self.exec_id)
            except BrokenPipeError as error:
                await self.discard()
                raise click.exceptions.Exit(128 + signal.SIGPIPE) from error
            except OSError as error:
                await self.discard()
                raise CarinaError(f"the output of {self.id} can't be written: {error.strerror}") from error
            except BaseException:
                await self.discard()
                raise
            return status

    async def _attend(self, pipes: "Streams") -> int:
        sys.stdout.flush()
        pipes.copy_output({"stdout": sys.stdout.fileno(), "stderr": sys.stderr.fileno()})
        await self.client.tasks.start(self.id, self.exec_id)
        with self._forwarding(), self._terminal() if self.tty else contextlib.nullcontext():
            pipes.copy_input(0, lambda: self.client.tasks.close_io(self.id, exec_id=self.exec_id))
            ended = await pipes.attend(self._end())
            await pipes.drained()
        return ended.status

    async def _end(self) -> "Exit":
        """The process's end: services may be restarted while it runs."""
        away_since: float | None = None
        while True:
            try:
                return await self.client.tasks.wait(self.id, self.exec_id)
            except Unavailable:
                away_since = away_since or time.monotonic()
                if time.monotonic() > away_since + OUTAGE:
                    raise
            else:
                away_since = None
            await asyncio.sleep(0.2)

    async def discard(self) -> None:
        """Kill and delete the process, as far as there is one."""
        with contextlib.suppress(CarinaError), context.deadline(CLEAN_UP):
            await self.client.tasks.kill(self.id, signal.SIGKILL, exec_id=self.exec_id, all=not self.exec_id)
            await self.client.tasks.wait(self.id, self.exec_id)
        with contextlib.suppress(CarinaError), context.deadline(CLEAN_UP):
            await self.client.tasks.delete(self.id, self.exec_id)

    @contextlib.contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Pass the signals that we get on to the process."""
        sent: set[asyncio.Task[None]] = set()

        async def send(number: int) -> None:
            with contextlib.suppress(CarinaError), context.deadline(CLEAN_UP):
                await self.client.tasks.kill(self.id, number, exec_id=self.exec_id)

        self.signals.forward = lambda number: sent.add(
            asyncio.create_task(send(number), name=f"forward signal {number}")
        )
        try:
            yield
        finally:
            self.signals.forward = None
            for task in sent:
                task.cancel()

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """Raw mode on our terminal, its size passed on now and at each change."""
        import termios
        import tty

        loop = asyncio.get_running_loop()
        before = termios.tcgetattr(0)
        resizing: set[asyncio.Task[None]] = set()

        async def resize() -> None:
            with contextlib.suppress(CarinaError, OSError), context.deadline(CLEAN_UP):
                size = os.get_terminal_size(0)
                await self.client.tasks.resize_pty(self.id, size.columns, size.lines, exec_id=self.exec_id)

        def resized() -> None:
            resizing.add(asyncio.create_task(resize(), name="resize the terminal"))

        resized()
        loop.add_signal_handler(signal.SIGWINCH, resized)
        tty.setraw(0)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            for task in resizing:
                task.cancel()
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, before)


async def attached(client: "Client", container: "Container", *, tty: bool, signals: Signals) -> int:
    """Run a container's task in the foreground; returns its exit status."""
    from carina.client.run import rootfs

    mounts = await rootfs(client, container)
    foreground = Foreground(client=client, signals=signals, id=container.id, tty=tty)
    return await foreground.run(lambda stdio: client.tasks.create(container.id, rootfs=mounts, stdio=stdio))


async def start_detached(client: "Client", container: "Container", *, signals: Signals) -> int:
    """Start a task whose output nobody reads."""
    from carina.aio.finish import or_undo
    from carina.client.run import rootfs
    from carina.tasks import Stdio

    task = Foreground(client=client, signals=signals, id=container.id)
    making = client.tasks.create(container.id, rootfs=await rootfs(client, container), stdio=Stdio())
    await or_undo(making, lambda _: task.discard())
    try:
        await client.tasks.start(container.id)
    except BaseException:
        await task.discard()
        raise
    return 0


async def executed(
    client: "Client", container: "Container", exec_id: str, process: dict[str, Any], *, signals: Signals
) -> int:
    """Run a further process of a task in the foreground; returns its exit status."""
    import json

    from carina.oci import spec
    from carina.typed import TypedValue

    value = TypedValue(spec.PROCESS_TYPE_URL, json.dumps(process).encode())
    tty = bool(process["terminal"])
    foreground = Foreground(client=client, signals=signals, id=container.id, exec_id=exec_id, tty=tty)
    return await foreground.run(lambda stdio: client.tasks.exec(container.id, exec_id, value, stdio))


def need_terminal() -> None:
    """Raises FailedPrecondition where our input is no terminal that could be the process's."""
    if not os.isatty(0):
        raise FailedPrecondition("-t needs a terminal on standard input")
