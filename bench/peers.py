"""What is measured: a constellation, and a containerd, each in a scratch directory, and the registry both pull from."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
        return with_children(self.constellation.supervisor.pid)


class Containerd:
    """Debian's containerd with a root of its own. Its shims share runc's root with the machine: other namespaces."""

    name = "containerd"
    namespace = "bench-containerd"

    def __init__(self, directory: Path, *, root: Path | None = None, debug: bool = False) -> None:
        self.directory = directory
        self.root = root or directory / "root"
        self._debug = debug
        self.socket = directory / "containerd.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = self.directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.root}"\nstate = "{self.directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
            f'[debug]\nlevel = "{"debug" if self._debug else "info"}"\n'
        )
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(config)], stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: answers(self.socket), "the start of containerd")

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
            raise SystemExit(f"bench: {what} did not happen in {seconds:.0f} s")
        time.sleep(0.01)


@contextlib.contextmanager
def containerd(*, root: Path | None = None, debug: bool = False) -> Iterator[Containerd]:
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    peer = Containerd(directory, root=root, debug=debug)
    try:
        peer.start()
        yield peer
    finally:
        peer.stop()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(os.fspath(directory)):
                subprocess.run(["umount", "--lazy", line.split()[4]], check=False)
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def fresh_filesystem(image: Path, size: int = 40 << 30) -> Iterator[Path]:
    """An empty ext4 in the sparse file `image`, mounted for the block and deleted afterwards."""
    mount = Path(tempfile.mkdtemp(prefix="bench-fs-", dir="/tmp"))
    try:
        with image.open("wb") as file:
            file.truncate(size)
        options = "assume_storage_prezeroed=1,lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        yield mount
    finally:
        subprocess.run(["umount", mount], check=False)
        mount.rmdir()
        image.unlink(missing_ok=True)


def with_children(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += with_children(int(child))
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


def command_of(pid: int) -> str:
    """The name of a process, as proc_pid_comm(5) has it."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def command(peer: Peer, *arguments: str) -> None:
    full = ["ctr", "--address", str(peer.socket), "--namespace", peer.namespace, *arguments]
    subprocess.run(full, capture_output=True, check=True, timeout=300)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
