"""What is measured: a constellation, and a containerd, each in a scratch directory, and the registry both pull from."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.constellation import Constellation


class Peer(Protocol):
    """Something that speaks containerd's API."""

    name: str
    namespace: str

    @property
    def socket(self) -> Path: ...

    def pids(self) -> list[int]: ...


class Carina:
    name = "carina"
    namespace = "bench-carina"

    def __init__(self, constellation: Constellation) -> None:
        self.constellation = constellation

    @property
    def socket(self) -> Path:
        return self.constellation.socket

    def pids(self) -> list[int]:
        """The supervisor and every service, their workers too."""
        return _with_children(self.constellation.supervisor.pid)


class Containerd:
    """Debian's containerd with a root of its own. Its shims share runc's root with the machine: other namespaces."""

    name = "containerd"
    namespace = "bench-containerd"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "containerd.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = self.directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(config)], stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: answers(self.socket), "containerd")

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid]


def answers(socket: Path) -> bool:
    command = ["ctr", "--address", str(socket), "version"]
    return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0


def wait_until(done: "object", what: str, seconds: float = 30) -> None:
    assert callable(done)
    limit = time.monotonic() + seconds
    while not done():
        if time.monotonic() > limit:
            raise SystemExit(f"bench: {what} did not come up")
        time.sleep(0.01)


@contextlib.contextmanager
def containerd() -> Iterator[Containerd]:
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    peer = Containerd(directory)
    try:
        peer.start()
        yield peer
    finally:
        peer.stop()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(os.fspath(directory)):
                subprocess.run(["umount", "--lazy", line.split()[4]], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _with_children(int(child))
    return found


def pss(pids: list[int]) -> float:
    """Proportional set size of processes in MiB (proc_pid_smaps(5))."""
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def processor_seconds(pids: list[int]) -> float:
    """User and system time of processes, and of their children that have ended."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")
