"""A whole constellation in a scratch directory, and the clients that talk to it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

BIN = Path(sys.executable).parent


class Constellation:
    """`carina up` in a directory of its own; everything it started is gone when the block ends."""

    def __init__(self, *, config: str = "", namespace: str = "") -> None:
        # Socket paths have 107 bytes at the most, so the directory is a short one.
        self.directory = Path(tempfile.mkdtemp(prefix="carina-", dir="/tmp"))
        self.root, self.state = self.directory / "root", self.directory / "state"
        # Control groups are the machine's: two test runs beside each other must not share a namespace.
        self.namespace = namespace or f"carina-test-{os.getpid()}"
        self.log = self.directory / "up.log"
        self.config = self.directory / "config.toml"
        self.config.write_text(config)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix://{self.state}/carina.sock"

    @property
    def socket(self) -> Path:
        return self.state / "carina.sock"

    @property
    def paths(self) -> list[str]:
        return ["--config", str(self.config), "--root", str(self.root), "--state", str(self.state)]

    @property
    def supervisor(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self, *, umask: int = -1) -> None:
        seen = self.log.read_text().count("carina is ready") if self.log.exists() else 0
        with self.log.open("ab") as output:
            command = [str(BIN / "carina"), "up", *self.paths]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=umask,
            )
        limit = time.monotonic() + 30
        while self.log.read_text().count("carina is ready") <= seen:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def ctr(self, *arguments: str, check: bool = True, stdin: bytes = b"", timeout: float = 60) -> "Result":
        return self._call(
            ["ctr", "--address", str(self.socket), "--namespace", self.namespace, *arguments], check, stdin, timeout
        )

    def carina(self, *arguments: str, check: bool = True, stdin: bytes = b"", timeout: float = 60) -> "Result":
        command = [str(BIN / "carina"), "--address", self.address, "--namespace", self.namespace, *arguments]
        return self._call(command, check, stdin, timeout)

    def _call(self, command: list[str], check: bool, stdin: bytes, timeout: float) -> "Result":
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
        result = Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        assert not check or result.status == 0, f"{command}: {result}\n{self.log.read_text()[-4000:]}"
        return result

    def wait_for(self, *arguments: str, text: str, seconds: float = 20) -> "Result":
        """Run a `ctr` command again and again until its output holds `text`."""
        limit = time.monotonic() + seconds
        while True:
            result = self.ctr(*arguments, check=False)
            if text in result.output:
                return result
            assert time.monotonic() < limit, f"{arguments}: {result}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.1)

    def clean_namespace(self) -> None:
        """Remove every container, image and snapshot of the namespace."""
        for task in self.ctr("tasks", "ls", "-q").output.split():
            self.ctr("tasks", "kill", "-a", "-s", "SIGKILL", task, check=False)
            self.ctr("tasks", "rm", "-f", task, check=False)
        for container in self.ctr("containers", "ls", "-q").output.split():
            self.ctr("containers", "rm", container, check=False)
        images = self.ctr("images", "ls", "-q").output.split()
        if images:
            self.ctr("images", "rm", "--sync", *images, check=False)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.clean_namespace()
        self.stop()
        # A supervisor that was killed, or detached, leaves services.
        subprocess.run([str(BIN / "carina"), "down", *self.paths], capture_output=True, timeout=90, check=False)
        self._unmount()
        self._remove_cgroups()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _unmount(self) -> None:
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", mount], check=False)

    def _remove_cgroups(self) -> None:
        """runc removes a container's control group, not the namespace's above it."""
        for directory in Path("/sys/fs/cgroup").glob(f"*/{self.namespace}"):
            with contextlib.suppress(OSError):
                directory.rmdir()


class Result:
    def __init__(self, status: int, output: str, error: str) -> None:
        self.status, self.output, self.error = status, output, error

    def __repr__(self) -> str:
        return f"exit status {self.status}\n{self.output}{self.error}"
