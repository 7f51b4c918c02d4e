"""A container's process in the foreground: its streams, our signals, its end."""

import asyncio
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Io:
    """Where the streams of a process go, in place of ours."""

    null: bool = False
    log_uri: str = ""
    fifo_directory: str = ""
    pid_file: str = ""

    @property
    def elsewhere(self) -> "Stdio | None":
        """What the shim is told, where it is not we who read; None: we do."""
        from carina.tasks import Stdio

        if self.log_uri:
            return Stdio(stdout=self.log_uri, stderr=self.log_uri)
        return Stdio() if self.null else None


OURS: Final = Io()


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of commands that start processes, given to the command together as `io`."""

    @functools.wraps(command)
    def with_io(*args: Any, null_io: bool, log_uri: str, fifo_dir: str, pid_file: str, **rest: Any) -> Any:
        if null_io and log_uri:
            raise click.UsageError("--null-io and --log-uri exclude each other")
        if log_uri and "://" not in log_uri:
            raise click.UsageError(f"--log-uri {log_uri!r}: expected file:///path or binary:///path")
        return command(*args, io=Io(null=null_io, log_uri=log_uri, fifo_directory=fifo_dir, pid_file=pid_file), **rest)

    for option in (
        click.option("--pid-file", default="", type=click.Path(), help="Write the pid of the process to this file."),
        click.option("--fifo-dir", default="", type=click.Path(), help="Directory of the FIFOs of its streams."),
        click.option("--log-uri", default="", metavar="URI", help="file:///path or binary:///path for what it prints."),
        click.option("--null-io", is_flag=True, help="Neither read nor show what it prints."),
    ):
        with_io = option(with_io)
    return with_io


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
    io: Io = OURS

    async def run(self, make: "Callable[[Stdio], Coroutine[Any, Any, object]]") -> int:
        """Make the process, start it, copy its streams until it ends, delete it; returns its exit status.

        A process whose output can't be written any more, or for which we can't wait, is killed and deleted.
        """
        from carina.aio.finish import or_undo
        from carina.client.stdio import streams

        elsewhere = self.io.elsewhere
        if elsewhere is not None:
            return await self._unattended(make(elsewhere))
        below = Path(self.io.fifo_directory) if self.io.fifo_directory else self.client.fifo_directory
        async with streams(below, terminal=self.tty, stdin=True) as pipes:
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

    async def _unattended(self, making: Coroutine[Any, Any, object]) -> int:
        """The process to its end, whose streams are somebody else's."""
        from carina.aio.finish import or_undo

        await or_undo(making, lambda _: self.discard())
        try:
            write_pid(self.io, await self.client.tasks.start(self.id, self.exec_id))
            with self._forwarding():
                ended = await self._end()
            await self.client.tasks.delete(self.id, self.exec_id)
        except BaseException:
            await self.discard()
            raise
        return ended.status

    async def _attend(self, pipes: "Streams") -> int:
        sys.stdout.flush()
        pipes.copy_output({"stdout": sys.stdout.fileno(), "stderr": sys.stderr.fileno()})
        write_pid(self.io, await self.client.tasks.start(self.id, self.exec_id))
        return await self._follow(pipes)

    async def follow(self, pipes: "Streams") -> int:
        """Copy the streams of a process that runs already, until it ends; it is not deleted."""
        sys.stdout.flush()
        pipes.copy_output({"stdout": sys.stdout.fileno(), "stderr": sys.stderr.fileno()})
        return await self._follow(pipes)

    async def _follow(self, pipes: "Streams") -> int:
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


def write_pid(io: Io, pid: int) -> None:
    """Raises CarinaError: the file can't be written."""
    if not io.pid_file:
        return
    path = Path(io.pid_file)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(str(pid))
        part.replace(path)
    except OSError as error:
        raise CarinaError(f"pid file {path} can't be written: {error.strerror}") from error


async def attached(client: "Client", container: "Container", *, tty: bool, signals: Signals, io: Io = OURS) -> int:
    """Run a container's task in the foreground; returns its exit status."""
    from carina.client.run import rootfs

    mounts = await rootfs(client, container)
    foreground = Foreground(client=client, signals=signals, id=container.id, tty=tty, io=io)
    return await foreground.run(lambda stdio: client.tasks.create(container.id, rootfs=mounts, stdio=stdio))


async def start_detached(client: "Client", container: "Container", *, signals: Signals, io: Io = OURS) -> int:
    """Start a task whose output nobody reads, or goes where `io` says."""
    from carina.aio.finish import or_undo
    from carina.client.run import rootfs
    from carina.tasks import Stdio

    task = Foreground(client=client, signals=signals, id=container.id)
    making = client.tasks.create(container.id, rootfs=await rootfs(client, container), stdio=io.elsewhere or Stdio())
    await or_undo(making, lambda _: task.discard())
    try:
        write_pid(io, await client.tasks.start(container.id))
    except BaseException:
        await task.discard()
        raise
    return 0


async def executed(
    client: "Client",
    container: "Container",
    exec_id: str,
    process: dict[str, Any],
    *,
    signals: Signals,
    io: Io = OURS,
    detach: bool = False,
) -> int:
    """Run a further process of a task in the foreground, or start it with `detach`; returns its exit status."""
    import json

    from carina.oci import spec
    from carina.typed import TypedValue

    value = TypedValue(spec.PROCESS_TYPE_URL, json.dumps(process).encode())
    tty = bool(process["terminal"])
    foreground = Foreground(client=client, signals=signals, id=container.id, exec_id=exec_id, tty=tty, io=io)
    if detach:
        from carina.aio.finish import or_undo
        from carina.tasks import Stdio

        stdio = io.elsewhere or Stdio(terminal=tty)
        await or_undo(client.tasks.exec(container.id, exec_id, value, stdio), lambda _: foreground.discard())
        write_pid(io, await client.tasks.start(container.id, exec_id))
        return 0
    return await foreground.run(lambda stdio: client.tasks.exec(container.id, exec_id, value, stdio))


def need_terminal() -> None:
    """Raises FailedPrecondition where our input is no terminal that could be the process's."""
    if not os.isatty(0):
        raise FailedPrecondition("-t needs a terminal on standard input")
