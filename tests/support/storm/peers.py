"""What a storm goes over: a constellation or a containerd, with its root on a small file system of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from carina.config import daemon, load
from carina.supervisor.survivors import listener
from support.constellation import Constellation
from support.registry import Registry

DISK_BYTES: Final = 768 << 20
INODES: Final = 48_000
SECONDS: Final = 60.0


def processes() -> Iterator[tuple[int, str]]:
    """Pid and command line of every process."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                yield int(name), Path(f"/proc/{name}/cmdline").read_text(errors="replace").replace("\0", " ")


def mounts(below: Path) -> list[str]:
    found = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [mount for mount in found if mount.startswith(f"{below}/")]


def make_disk(image: Path, mountpoint: Path) -> None:
    """A small ext4 of few inodes, so that it can be filled in a moment."""
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(INODES), image], check=True)
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, mountpoint], check=True)


class Peer:
    """Something that speaks containerd's API, and is started again by somebody when it dies."""

    name = ""
    namespaces: tuple[str, ...] = ()
    directory: Path
    disk: Path
    registry: Registry | None = None
    """Where its clients pull from."""

    @property
    def socket(self) -> Path:
        raise NotImplementedError

    @property
    def state(self) -> Path:
        raise NotImplementedError

    @property
    def log(self) -> Path:
        raise NotImplementedError

    def services(self) -> dict[str, int]:
        """Name and pid of those that run."""
        raise NotImplementedError

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def shims(self) -> list[int]:
        """Shims of the storm's namespaces."""
        found = [(pid, line) for pid, line in processes() if "containerd-shim" in line]
        return [pid for pid, line in found if any(f" {name} " in f"{line} " for name in self.namespaces)]

    def control_groups(self) -> list[Path]:
        base = Path("/sys/fs/cgroup")
        return [path for name in self.namespaces for path in base.glob(f"*/{name}/*/")]

    def clean(self) -> None:
        """End and remove what is left of everything."""
        for pid in self.shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        base = Path("/sys/fs/cgroup")
        for name in self.namespaces:
            for path in base.glob(f"*/{name}/**/cgroup.procs"):
                for line in path.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(line), signal.SIGKILL)
        limit = time.monotonic() + 5
        while left := [*self.control_groups(), *(one for name in self.namespaces for one in base.glob(f"*/{name}/"))]:
            for path in left:
                with contextlib.suppress(OSError):
                    path.rmdir()
            if time.monotonic() > limit:
                break
        for mount in reversed(mounts(self.directory)):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.clean()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        try:
            self.stop()
        finally:
            self.clean()


class Ours(Peer):
    """`carina up`; its own supervisor starts its services again."""

    name = "carina"

    def __init__(self, *, disk: Path | None = None, config: str = "") -> None:
        self._constellation = Constellation(config=config)
        self.directory = self._constellation.directory
        self.namespaces = tuple(f"storm-{os.getpid()}-{letter}" for letter in "ab")
        self.disk = disk or self.directory / "disk"
        if disk is None:
            make_disk(self.directory / "disk.img", self.disk)
        self._constellation.root = self.disk / "root"

    @property
    def socket(self) -> Path:
        return self._constellation.socket

    @property
    def state(self) -> Path:
        return self._constellation.state

    @property
    def root(self) -> Path:
        return self._constellation.root

    @property
    def log(self) -> Path:
        return self._constellation.log

    @property
    def names(self) -> list[str]:
        """Every service, running or not."""
        return [daemon(service) for service in load(root=self.root, state=self.state).services]

    def pid(self, name: str) -> int | None:
        return listener(self.state / ("carina.sock" if name == "gatewayd" else f"{name}.sock"))

    def services(self) -> dict[str, int]:
        supervisor = self._constellation.supervisor
        if supervisor.poll() is not None:
            return {}
        found = {}
        for task in Path(f"/proc/{supervisor.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{child}/cmdline").read_text(errors="replace")
                    found[line.split("\0")[0].split()[0].removesuffix(":")] = int(child)
        return {name: pid for name, pid in found.items() if name in self.names}

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        before = dict(os.environ)
        # A shim of ours that has no container any more stays for a while: here, not as long as a round lasts.
        os.environ.update({"CARINA_SHIM_IDLE_SECONDS": "3", **(environment or {})})
        try:
            self._constellation.start()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def stop(self) -> None:
        with contextlib.suppress(AssertionError):
            self._constellation.stop()
        command = [self.carina, "down", *self._constellation.paths]
        subprocess.run(command, capture_output=True, timeout=90, check=False)

    @property
    def carina(self) -> str:
        return shutil.which("carina", path=str(Path(os.sys.executable).parent)) or "carina"  # type: ignore[attr-defined]


class Theirs(Peer):
    """Debian's containerd with a root of its own; a thread starts it again, as systemd does."""

    name = "containerd"

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="storm-", dir="/tmp"))
        self.namespaces = tuple(f"storm-{os.getpid()}-{letter}" for letter in "yz")
        self.disk = self.directory / "disk"
        make_disk(self.directory / "disk.img", self.disk)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._config = self.directory / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{self.disk}/root"\nstate = "{self.state}"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )

    @property
    def socket(self) -> Path:
        return self.directory / "containerd.sock"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def services(self) -> dict[str, int]:
        return {"containerd": self._process.pid} if self._process and self._process.poll() is None else {}

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        self._stopping.clear()
        self._run()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()
        limit = time.monotonic() + SECONDS
        while listener(self.socket) is None:
            assert time.monotonic() < limit, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def _run(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(self._config)], stdout=log, stderr=log, start_new_session=True
            )

    def _keep(self) -> None:
        while not self._stopping.wait(0.1):
            if self._process is not None and self._process.poll() is not None:
                self._run()

    def stop(self) -> None:
        self._stopping.set()
        self._keeper.join()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
