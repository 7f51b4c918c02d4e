"""Terminals: the runtime sends us the controlling end over a socket, and we copy between it and the client's FIFOs.

One chunk is on its way in each direction. When the client does not read, the terminal is not read either.
"""

import fcntl
import os
import socket
import struct
import termios
from typing import Final

from carina.errors import Unavailable
from shimd.loop import READ, WRITE, Loop
from shimd.stdio import Logger, Stdio, is_logger, open_input, open_output

_CHUNK: Final = 32 << 10
_SECONDS: Final = 10.0


class ConsoleSocket:
    """Where the runtime hands a terminal over: `path` is its --console-socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(1)

    def receive(self) -> int:
        """The terminal, once the runtime has ended well.

        Raises:
            Unavailable: it sent none.
        """
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(_SECONDS)
                _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        except OSError as error:
            raise Unavailable("the runtime sent no terminal") from error
        if not descriptors:
            raise Unavailable("the runtime sent no terminal")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        self._listener.close()
        os.unlink(self.path)


class _Pump:
    """Copies from one descriptor to another until the first ends or `close`."""

    def __init__(self, loop: Loop, source: int, target: int) -> None:
        self._loop, self._source, self._target = loop, source, target
        self._waiting = b""
        self.ended = loop.future()
        loop.watch(source, READ, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self._end()
            return
        self._waiting = data
        self._write()

    def _write(self) -> None:
        try:
            self._waiting = self._waiting[os.write(self._target, self._waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self._end()
            return
        if self._waiting:
            self._loop.unwatch(self._source)
            self._loop.watch(self._target, WRITE, self._write)
        else:
            self._loop.unwatch(self._target, WRITE)
            self._loop.watch(self._source, READ, self._read)

    def _end(self) -> None:
        self.close()
        self.ended.set(None)

    def close(self) -> None:
        self._loop.unwatch(self._source)
        self._loop.unwatch(self._target, WRITE)


class Terminal:
    """The controlling end, and the copying."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._master = -1
        self._stdin = self._stdin_writer = self._stdout = -1
        self._input: _Pump | None = None
        self._output: _Pump | None = None

    async def open(self, stdio: Stdio, logger: Logger, id: str) -> None:
        """Open the client's ends.

        Raises:
            CarinaError: one can't be opened.
        """
        if is_logger(stdio.stdout):
            self._stdout, unused, _ = await logger.start(stdio.stdout, id)
            os.close(unused)
            os.set_blocking(self._stdout, False)
        elif stdio.stdout:
            self._stdout = open_output(stdio.stdout, blocking=False)
        else:
            self._stdout = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        if stdio.stdin:
            self._stdin, self._stdin_writer = open_input(stdio.stdin, blocking=False)

    def begin(self, master: int) -> None:
        os.set_blocking(master, False)
        self._master = master
        self._output = _Pump(self._loop, master, self._stdout)
        if self._stdin >= 0 and self._stdin_writer >= 0:
            # Of its own number: a descriptor has one watch for writing, and the terminal's is for its output.
            self._copy = os.dup(master)
            self._input = _Pump(self._loop, self._stdin, self._copy)

    def resize(self, *, width: int, height: int) -> None:
        if self._master >= 0:
            size = struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close_stdin(self) -> None:
        if self._stdin_writer >= 0:
            os.close(self._stdin_writer)
            self._stdin_writer = -1

    async def drained(self) -> None:
        """Wait a while for the client to take what the process wrote before it ended."""
        if self._output is not None:
            await self._loop.within(self._output.ended, _SECONDS)

    def close(self) -> None:
        for pump in (self._input, self._output):
            if pump is not None:
                pump.close()
        if self._input is not None:
            os.close(self._copy)
        self.close_stdin()
        for descriptor in (self._master, self._stdin, self._stdout):
            if descriptor >= 0:
                os.close(descriptor)
        self._input = self._output = None
        self._master = self._stdin = self._stdout = -1
