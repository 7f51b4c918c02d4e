"""A dockerd of its own that runs its containers on a constellation, and the `docker` that talks to it."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from support.constellation import Constellation, Result

NEEDED = ("dockerd", "docker", "containerd-shim-runc-v2")


def missing() -> str:
    """Why there can be no dockerd here; empty where there can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (Debian's docker.io and containerd have them)" if absent else ""


class Dockerd:
    """No bridge, no packet filter, nothing outside of the constellation's directory but control groups."""

    def __init__(
        self,
        constellation: Constellation,
        *,
        program: str = "dockerd",
        settings: str = "{}",
        client: Path | None = None,
    ) -> None:
        """`settings` are those of `daemon.json`, `client` the directory of the client's configuration."""
        self._constellation = constellation
        self._program, self._settings, self._client = program, settings, client
        self._directory = constellation.directory / "docker"
        self._directory.mkdir()
        self._log = self._directory / "log"
        self._group = f"carina-docker-{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self._directory}/docker.sock"

    @property
    def namespace(self) -> str:
        return f"{self._constellation.namespace}-moby"

    def start(self) -> None:
        directory = self._directory
        command = [
            *(self._program, "--containerd", str(self._constellation.socket), "--host", self.host),
            *("--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")),
            *("--pidfile", str(directory / "pid"), "--cgroup-parent", f"/{self._group}"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--live-restore"),
            *("--containerd-namespace", self.namespace, "--containerd-plugins-namespace", f"{self.namespace}-plugins"),
        ]
        configuration = directory / "daemon.json"
        configuration.write_text(self._settings)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--config-file", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        limit = time.monotonic() + 60
        while self.docker("version", check=False).status != 0:
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < limit, self._log.read_text()[-4000:]
            time.sleep(0.1)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def command(self, *arguments: str) -> list[str]:
        settings = [] if self._client is None else ["--config", str(self._client)]
        return ["docker", *settings, "--host", self.host, *arguments]

    def docker(self, *arguments: str, check: bool = True, stdin: bytes = b"") -> Result:
        done = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, timeout=60, check=False)
        result = Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        assert not check or result.status == 0, f"{arguments}: {result}\n{self._log.read_text()[-4000:]}"
        return result

    def inspect(self, container: str, template: str) -> str:
        return self.docker("inspect", "--format", template, container).output.strip()

    def until(self, text: str, *arguments: str) -> str:
        """Run a command again and again until its output holds `text`."""
        limit = time.monotonic() + 30
        while True:
            result = self.docker(*arguments, check=False)
            if text in result.output + result.error:
                return result.output
            assert time.monotonic() < limit, f"{arguments}: {result}\n{self._log.read_text()[-4000:]}"
            time.sleep(0.1)

    def clean(self) -> None:
        """Remove every container."""
        found = self.docker("ps", "--all", "--quiet").output.split()
        if found:
            self.docker("rm", "--force", "--volumes", *found, check=False)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.clean()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for directory in Path("/sys/fs/cgroup").glob(f"*/{self._group}"):
            with contextlib.suppress(OSError):
                directory.rmdir()
