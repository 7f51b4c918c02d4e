"""Services forked from a process that has loaded their code: a start takes milliseconds, so a test can have many.

    with Nursery() as nursery:
        service = nursery.start("contentd", "--root", "/r", "--state", "/s", fault="contentd.commit.named")
        assert service.ready()
        ...
        assert service.wait() == -signal.SIGKILL

Nothing survives the block, and nothing survives a test process that is killed: the nursery sees the end of its input
and ends its children. If it is killed itself, the kernel does that.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Self

from carina.linux.libc import call

NAMES: Final = ("contentd", "snapshotd", "metadatad", "imaged", "taskd")
SECONDS: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1


class Service:
    """A service that was started; `log` is what it says."""

    def __init__(self, nursery: "Nursery", pid: int, notices: socket.socket, *, log: Path, fault: str) -> None:
        self.pid = pid
        self.log = log
        self.fault = fault
        self.status: int | None = None
        self._nursery = nursery
        self._notices = notices
        self._pidfd = os.pidfd_open(pid)

    @property
    def alive(self) -> bool:
        return self.status is None and not select.select([self._pidfd], [], [], 0)[0]

    def ready(self) -> bool:
        """Wait until it answers (True) or has ended (False)."""
        limit = time.monotonic() + SECONDS
        while time.monotonic() < limit:
            found, _, _ = select.select([self._notices.fileno(), self._pidfd], [], [], 1.0)
            if self._notices.fileno() in found and b"READY=1" in self._notices.recv(1024):
                return True
            if self._pidfd in found:
                return False
        raise AssertionError(f"service {self.pid} neither answers nor ends:\n{self.log.read_text()}")

    def wait(self) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        if self.status is None:
            assert select.select([self._pidfd], [], [], SECONDS)[0], f"{self.pid} goes on:\n{self.log.read_text()}"
            self.status = self._nursery.ask(reap=self.pid)
            os.close(self._pidfd)
            self._notices.close()
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> int:
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, number)
        return self.wait()


class Nursery:
    """The process that services are forked from."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True
        )
        self._services: list[Service] = []

    def start(self, name: str, *arguments: str, log: Path, fault: str = "", careless: bool = False) -> Service:
        """Start a service, with a fault point that is on, or as it would be if it never synced anything."""
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notices.bind("")  # an abstract address that the kernel chooses
        environment = {"NOTIFY_SOCKET": "@" + notices.getsockname()[1:].decode(), "CARINA_FAULT": fault}
        pid = self.ask(start=name, arguments=arguments, environment=environment, log=str(log), careless=careless)
        service = Service(self, pid, notices, log=log, fault=fault)
        self._services.append(service)
        return service

    def ask(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        for service in self._services:
            service.kill()
        self._process.communicate(timeout=SECONDS)


def _serve() -> None:
    """The nursery itself: forks and reaps as it is asked to, until its input ends."""
    mains = {name: importlib.import_module(f"{name}.__main__").main for name in NAMES}
    children = set()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "reap" in request:
            children.discard(request["reap"])
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _become(mains[request["start"]], request)
            children.add(answer)
        print(answer, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _become(main: Any, request: dict[str, Any]) -> None:
    status = 1
    try:
        os.setsid()
        call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL))
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["environment"])
        if request["careless"]:
            os.fsync = os.fdatasync = lambda fd: None
        main.main(args=request["arguments"], prog_name=request["start"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
