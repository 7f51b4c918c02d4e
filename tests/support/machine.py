"""A Debian with systemd as its first process, in systemd-nspawn, from a tree that debootstrap made once."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from support.constellation import Result

CACHE: Final = Path(os.environ.get("CARINA_TEST_CACHE") or Path.home() / ".cache" / "carina-test")
SUITE: Final = "bookworm"
PACKAGES: Final = "systemd,systemd-sysv,dbus,python3,python3-venv,containerd,runc,ca-certificates,procps"
NEEDED: Final = ("systemd-nspawn", "nsenter")


def missing() -> str:
    """Why there can be no machine here; empty where there can."""
    if absent := [name for name in (*NEEDED, *tools()) if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)} (debootstrap, systemd-container and util-linux have them)"
    if not os.environ.get("CARINA_MACHINE"):
        return "takes some minutes, the first time more, and the Debian archive: CARINA_MACHINE=1 runs it"
    return ""


def tools() -> list[str]:
    """Programs that are needed to make what is kept in the cache, as far as it is not there."""
    return [] if (CACHE / "tree").exists() else ["debootstrap"]


def tree() -> Path:
    """A minimal Debian with what Carina runs on; it is never changed, and made only once."""
    path = CACHE / "tree"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="tree-", dir=CACHE))
        made.chmod(0o755)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        made.rename(path)
    return path


def wheels(root: Path) -> Path:
    """The packages of requirements.lock that the services and their build need, as files."""
    path = CACHE / "wheels"
    if not (path / ".complete").exists():
        needed = [
            line
            for line in (root / "requirements.lock").read_text().splitlines()
            if line.partition("==")[0] not in _DEV
        ]
        command = [shutil.which("python3.11") or "python3", "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(path), *needed], check=True, capture_output=True, timeout=600)
        (path / ".complete").touch()
    return path


_DEV: Final = {"grpcio", "grpcio-tools", "mypy", "ruff", "hypothesis", "protobuf"}
"""Large, and nothing that a service needs."""


class Machine:
    """Runs while the block does, on a throw-away copy of the tree."""

    def __init__(self, *, binds: dict[Path, str]) -> None:
        self.directory = Path("/tmp") / f"carina-machine-{secrets.token_hex(4)}"  # also its name, as of a host
        self.directory.mkdir(mode=0o700)
        self.root = self.directory / "root"
        self.log = self.directory / "console"
        self._binds = binds
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def _mount(self) -> None:
        for name in ("root", "upper", "work", "data"):
            (self.directory / name).mkdir()
        options = f"lowerdir={tree()},upperdir={self.directory}/upper,workdir={self.directory}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True)
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n")

    def start(self) -> None:
        command = [
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--capability=all"),
            "--system-call-filter=@keyring bpf",  # runc makes a keyring for each container
            *("--directory", str(self.root), "--machine", self.directory.name),
            # An overlay can't have its upper directory on an overlay: the stores are the host's.
            f"--bind={self.directory}/data:/var/lib/carina",
            *(f"--bind-ro={source}:{target}" for source, target in self._binds.items()),
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        limit = time.monotonic() + 60
        while not self._booted():
            assert self._process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < limit, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        self._write_control_groups()

    def _booted(self) -> bool:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own = os.readlink("/proc/self/ns/pid")
        for child in children:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{child}/ns/pid") != own:
                    self._leader = int(child)
        return bool(self._leader) and self.run("systemctl", "is-system-running", check=False).output.strip() in (
            "running",
            "degraded",
        )

    def _write_control_groups(self) -> None:
        """nspawn gives the controllers of version 1 for reading only, and runc is to make groups in them."""
        script = "for d in /sys/fs/cgroup/*/; do mount -o remount,bind,rw $d 2>/dev/null; done; true"
        self.run("mount", "-o", "remount,bind,rw", "/sys/fs/cgroup", check=False)
        self.run("sh", "-c", script)

    def command(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self._leader), "--all", "--", *command]

    def run(self, *command: str, check: bool = True, timeout: float = 120, stdin: bytes = b"") -> Result:
        done = subprocess.run(
            self.command(*command), input=stdin, capture_output=True, timeout=timeout, check=False, env=_ENVIRONMENT
        )
        result = Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        assert not check or result.status == 0, f"{command}: {result}"
        return result

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--unit", unit, "--output=cat").output

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        if self._leader:
            self.run("systemctl", "poweroff", "--no-block", check=False)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        try:
            self._mount()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        try:
            self.stop()
        finally:
            subprocess.run(["umount", "--lazy", str(self.root)], check=False, capture_output=True)
            shutil.rmtree(self.directory, ignore_errors=True)
            # nspawn leaves an empty directory for each machine.
            for name in ("propagate", "unix-export"):
                with contextlib.suppress(OSError):
                    Path(f"/run/systemd/nspawn/{name}/{self.directory.name}").rmdir()


_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
