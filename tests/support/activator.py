"""A service manager of a few lines: listens for a daemon, passes the sockets on, and takes its notifications."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

BIN = Path(sys.executable).parent
KINDS = {".fd.sock": socket.SOCK_SEQPACKET}

EXEC = """
import os, sys
numbers = [int(text) for text in sys.argv[1].split(",") if text]
high = [os.dup(number) for number in numbers]
while high and min(high) < 3 + len(numbers):
    high = [os.dup(number) for number in high]
for place, number in enumerate(high, 3):
    os.dup2(number, place, inheritable=True)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Activator:
    """The sockets outlive the daemon's processes, as those of systemd's socket units do."""

    def __init__(self, directory: Path, sockets: Mapping[str, Path], *, watchdog: float = 0.0) -> None:
        self.directory = directory
        self.log = directory / "daemon.log"
        self._names = list(sockets)
        self._watchdog = watchdog
        self._listening = [self._listen(path) for path in sockets.values()]
        self.notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notifications.bind(os.fspath(directory / "manager.sock"))
        self.notifications.settimeout(30)
        self.process: subprocess.Popen[bytes] | None = None

    def _listen(self, path: Path) -> socket.socket:
        kind = next((kind for ending, kind in KINDS.items() if path.name.endswith(ending)), socket.SOCK_STREAM)
        listening = socket.socket(socket.AF_UNIX, kind)
        listening.bind(os.fspath(path))
        path.chmod(0o660)
        listening.listen(1024)
        return listening

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start the daemon with every socket; `command` is its name and arguments."""
        return self.start_as([], *command)

    def start_as(self, prefix: Sequence[str], *command: str) -> "subprocess.Popen[bytes]":
        """The same, by a program that changes what it may do."""
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.directory / "manager.sock"),
            "LISTEN_FDS": str(len(self._listening)),
            "LISTEN_FDNAMES": ":".join(self._names),
            "WATCHDOG_USEC": str(int(self._watchdog * 1e6)),
        }
        numbers = [sock.fileno() for sock in self._listening]
        program = [
            *prefix,
            sys.executable,
            "-c",
            EXEC,
            ",".join(map(str, numbers)),
            str(BIN / command[0]),
            *command[1:],
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=numbers,
            )
        return self.process

    def until(self, state: str) -> None:
        """Return once the daemon has said so."""
        limit = time.monotonic() + 30
        while (said := self.notifications.recv(4096).decode()) != state:
            assert time.monotonic() < limit, said

    def forget(self) -> None:
        """Take what has arrived, and look at none of it."""
        self.notifications.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.notifications.recv(4096)

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for sock in (*self._listening, self.notifications):
            sock.close()
