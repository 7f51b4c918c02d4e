"""The constellation of docker-compose.yml under a dockerd of its own, whose mounts nobody else sees."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from support import machine
from support.constellation import Result

ROOT: Final = Path(__file__).resolve().parents[2]
NEEDED: Final = ("dockerd", "docker", "docker-compose", "ctr", "nsenter", "unshare")
IMAGE: Final = "carina-compose-test"
# The directories that the file names are scratch ones in here, and what is mounted in one container reaches the others.
_START: Final = """
set -e
mount --make-rslave /
for name in etc var/lib; do
    mkdir -p $0/$name $0/work/$name
    mount -t overlay overlay -o lowerdir=/$name,upperdir=$0/$name,workdir=$0/work/$name /$name
done
mkdir -p /var/lib/carina $0/stores
mount --bind $0/stores /var/lib/carina
mount -t tmpfs -o mode=0755 tmpfs /run
mount --make-rshared /
exec "$@"
"""


def missing() -> str:
    """Why there can be no such constellation here; empty where there can."""
    if absent := [name for name in (*NEEDED, *machine.tools()) if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)} (docker.io, docker-compose, debootstrap and containerd have them)"
    if not os.environ.get("CARINA_COMPOSE"):
        return "takes some minutes, the first time more, and the Debian archive: CARINA_COMPOSE=1 runs it"
    return ""


def capabilities() -> set[str]:
    """Names of those in the list of docker-compose.yml that this machine can't give to a container."""
    bounding = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:"))
    return set() if int(bounding.split()[1], 16) >> 24 & 1 else {"SYS_RESOURCE"}


class Composed:
    """Everything that it started is gone when the block ends."""

    def __init__(self, *, group: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="carina-", dir="/tmp"))
        self.group = f"carina-compose-{os.getpid()}"
        self.namespace = f"{self.group}-test"
        self._log = self.directory / "log"
        self._file = self.directory / "docker-compose.yml"
        text = (ROOT / "docker-compose.yml").read_text()
        for name in capabilities():
            text = text.replace(f"      - {name}\n", "")
        self._file.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
            "DOCKER_HOST": f"unix://{self.directory}/docker.sock",
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_PROJECT_NAME": "carina",
            "CARINA_BASE": f"{IMAGE}-base",
            "CARINA_IMAGE": IMAGE,
            "CARINA_GID": str(group),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/wheels",
        }

    def start(self) -> None:
        (self.directory / "daemon.json").write_text("{}")
        command = [
            *("unshare", "--mount", "--propagation=private", "sh", "-c", _START, str(self.directory), "dockerd"),
            *("--host", f"unix://{self.directory}/docker.sock", "--data-root", str(self.directory / "data")),
            *("--exec-root", str(self.directory / "exec"), "--pidfile", str(self.directory / "pid")),
            *("--config-file", str(self.directory / "daemon.json"), "--cgroup-parent", f"/{self.group}"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        limit = time.monotonic() + 60
        while self.call("docker", "version", check=False).status != 0:
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < limit, self._log.read_text()[-4000:]
            time.sleep(0.2)

    def build(self) -> None:
        """The image, on a base without any registry: debootstrap's tree, with the packages as files."""
        base = self.directory / "base"
        base.mkdir()
        script = 'tar -C "$1" -c . | docker import - "$2-tree"'
        self.call("sh", "-c", script, "-", str(machine.tree()), IMAGE, timeout=300)
        shutil.copytree(machine.wheels(ROOT), base / "wheels")
        (base / "Dockerfile").write_text(f"FROM {IMAGE}-tree\nCOPY wheels /wheels\n")
        self.call("docker", "build", "--quiet", "--tag", f"{IMAGE}-base", str(base), timeout=300)
        self.compose("build", "contentd", timeout=600)

    def compose(self, *arguments: str, check: bool = True, timeout: float = 300) -> Result:
        command = ["docker-compose", "--project-directory", str(ROOT), "--file", str(self._file), *arguments]
        return self.call(*command, check=check, timeout=timeout)

    def call(self, *command: str, check: bool = True, timeout: float = 60) -> Result:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, env=self.environment)
        result = Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        assert not check or result.status == 0, f"{command}: {result}\n{self._log.read_text()[-3000:]}"
        return result

    def host(self, *command: str, check: bool = True) -> Result:
        """A command of the host, where the host's directories are those that the containers got."""
        assert self._process is not None
        return self.call("nsenter", "--target", str(self._process.pid), "--mount", "--", *command, check=check)

    def ctr(self, *arguments: str, check: bool = True) -> Result:
        address = ("--address", "/run/carina/carina.sock", "--namespace", self.namespace)
        return self.host("ctr", *address, *arguments, check=check)

    def until(self, text: str, *arguments: str) -> str:
        """Run `ctr` again and again until its output holds `text`: services may be on their way up."""
        limit = time.monotonic() + 60
        while True:
            result = self.ctr(*arguments, check=False)
            if text in result.output:
                return result.output
            assert time.monotonic() < limit, f"{arguments}: {result}"
            time.sleep(0.3)

    def pid(self, service: str) -> int:
        return int(self.call("docker", "inspect", "--format", "{{.State.Pid}}", f"carina_{service}_1").output)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            self._end_tasks()
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.compose("down", timeout=120, check=False)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in (self.group, self.namespace, "carina-taskd"):
            for directory in Path("/sys/fs/cgroup").glob(f"*/{name}"):
                with contextlib.suppress(OSError):
                    directory.rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end_tasks(self) -> None:
        for task in self.ctr("tasks", "ls", "-q", check=False).output.split():
            self.ctr("tasks", "rm", "--force", task, check=False)
