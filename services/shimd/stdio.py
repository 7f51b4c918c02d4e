"""Standard input and output of a process without a terminal: descriptors that it gets itself, nothing is copied.

A FIFO is opened for reading and writing, so that neither we nor the process wait for a reader, and a reader may go and
another come. Its reader sees the end when the last process that has it is gone.
Standard input ends when its writers have closed it and so have we, on CloseIO.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from carina.errors import CarinaError, InvalidArgument, NotFound, Unavailable
from shimd.children import Children
from shimd.loop import READ, Future, Loop

LOGGER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """What a client asked for: paths of FIFOs or files, `file://` and `binary://` addresses, or nothing."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Streams:
    """Open descriptors, for the process and of our own. All are closed by `close`."""

    def __init__(self) -> None:
        self.given: dict[int, int] = {}
        """Standard descriptor -> ours, until the process has them."""
        self.stdin_writer = -1
        self.logger: int = 0
        """Process id of a logging program."""

    def hand_over(self) -> None:
        """The process has its descriptors: keep no copies."""
        for descriptor in set(self.given.values()):
            os.close(descriptor)
        self.given.clear()

    def close_stdin(self) -> None:
        if self.stdin_writer >= 0:
            os.close(self.stdin_writer)
            self.stdin_writer = -1

    def close(self) -> None:
        self.hand_over()
        self.close_stdin()


def _refused(what: str, path: str, error: OSError) -> CarinaError:
    text = f"{what} {path}: {(error.strerror or str(error)).lower()}"
    return NotFound(text) if isinstance(error, FileNotFoundError) else Unavailable(text)


def is_fifo(path: str) -> bool:
    return stat.S_ISFIFO(os.stat(path).st_mode)


def open_input(path: str, *, blocking: bool) -> tuple[int, int]:
    """The reading end of standard input, and the writing end that keeps it open (-1 where there is none).

    Raises:
        NotFound: there is no such file.
    """
    try:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not is_fifo(path):
            return reader, -1
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refused("standard input", path, error) from error
    os.set_blocking(reader, blocking)
    return reader, writer


def open_output(path: str, *, blocking: bool = True) -> int:
    """A FIFO, or a file that is appended to; those of `file://` addresses are made.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: an address of another kind.
    """
    scheme, separator, _ = path.partition("://")
    if separator and scheme not in ("file", "fifo"):
        raise InvalidArgument(f"output {path}: expected the path of a FIFO, or an address of file:// or binary://")
    plain = unquote(urlsplit(path).path) if separator else path
    try:
        if scheme == "file" and separator:
            os.makedirs(os.path.dirname(plain), exist_ok=True)
            return os.open(plain, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        mode = os.O_RDWR if is_fifo(plain) else os.O_WRONLY | os.O_APPEND
        return os.open(plain, mode | os.O_CLOEXEC | (0 if blocking else os.O_NONBLOCK))
    except OSError as error:
        raise _refused("output", plain, error) from error


def is_logger(path: str) -> bool:
    return path.startswith("binary://")


class Logger:
    """Starts the program of a `binary://` address: it reads both outputs from descriptors 3 and 4, and closes 5."""

    def __init__(self, loop: Loop, children: Children, *, namespace: str) -> None:
        self._loop = loop
        self._children = children
        self._namespace = namespace

    async def start(self, address: str, id: str) -> tuple[int, int, int]:
        """The writing ends for both outputs, and the program's pid, when it is ready.

        Raises:
            NotFound: there is no such program.
            Unavailable: it ended, or was not ready in time.
        """
        parts = urlsplit(address)
        program = unquote(parts.path)
        words = [word for pair in parse_qsl(parts.query, keep_blank_values=True) for word in pair if word]
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (out, out_writer), (err, err_writer), (ready, ready_writer) = pipes
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            environment = {**os.environ, "CONTAINER_ID": id, "CONTAINER_NAMESPACE": self._namespace}
            descriptors = {0: null, 1: null, 2: null, 3: out, 4: err, 5: ready_writer}
            pid, ended = self._children.start([program, *words], descriptors, environment)
        except OSError as error:
            _close(out_writer, err_writer, ready)
            raise _refused("logging program", program, error) from error
        finally:
            _close(out, err, ready_writer, null)
        try:
            await self._ready(ready, ended, program)
        except CarinaError:
            _close(out_writer, err_writer)
            raise
        finally:
            os.close(ready)
        return out_writer, err_writer, pid

    async def _ready(self, ready: int, ended: Future[int], program: str) -> None:
        said = self._loop.future()
        self._loop.watch(ready, READ, _once(self._loop, ready, said))
        await self._loop.within(said, LOGGER_SECONDS)
        self._loop.unwatch(ready)
        if not said.done:
            raise Unavailable(f"logging program {program}: not ready within {LOGGER_SECONDS:g} s")
        if ended.done and await ended:
            raise Unavailable(f"logging program {program} ended with status {await ended}")


def _once(loop: Loop, descriptor: int, future: Future[None]) -> Callable[[], None]:
    def readable() -> None:
        loop.unwatch(descriptor)
        future.set(None)

    return readable


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def open_streams(stdio: Stdio, logger: Logger, id: str) -> Streams:
    """Everything a process without a terminal is given.

    Raises:
        CarinaError: something can't be opened; then nothing is left open.
    """
    streams = Streams()
    try:
        if stdio.stdin:
            streams.given[0], streams.stdin_writer = open_input(stdio.stdin, blocking=True)
        if is_logger(stdio.stdout):
            streams.given[1], streams.given[2], streams.logger = await logger.start(stdio.stdout, id)
            return streams
        if stdio.stdout:
            streams.given[1] = open_output(stdio.stdout)
        if stdio.stderr:
            streams.given[2] = open_output(stdio.stderr)
    except CarinaError:
        streams.close()
        raise
    return streams
