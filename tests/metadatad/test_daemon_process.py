"""The metadata service as a process: containerd's own client on its socket, sudden death, a second instance."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.skipif(shutil.which("ctr") is None, reason="needs ctr")]


class Process:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "state" / "metadatad.sock"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "metadatad", "--root", str(self.directory / "root")]
        command += ["--state", str(self.socket.parent)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        limit = time.monotonic() + 20
        while not self.socket.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.02)
        return process

    def ctr(self, *arguments: str, namespace: str = "default") -> subprocess.CompletedProcess[str]:
        command = ["ctr", "-a", str(self.socket), "-n", namespace, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.socket.unlink()

    def restart(self) -> None:
        self.process = self._start()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=10)
        return self.process.returncode


@pytest.fixture
def metadatad(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    if process.process.poll() is None:
        process.process.kill()
    process.process.communicate()


def test_ctr_namespaces(metadatad: Process) -> None:
    """ctr makes, labels, lists and removes namespaces."""
    assert metadatad.ctr("namespaces", "create", "foo", "a=b").returncode == 0
    assert "already exists" in metadatad.ctr("namespaces", "create", "foo").stderr
    assert metadatad.ctr("namespaces", "label", "foo", "x=y", "a=").returncode == 0
    assert metadatad.ctr("namespaces", "ls").stdout.split() == ["NAME", "LABELS", "foo", "x=y"]
    assert metadatad.ctr("namespaces", "remove", "foo").stdout.strip() == "foo"
    assert metadatad.ctr("namespaces", "ls", "-q").stdout == ""


def test_ctr_leases(metadatad: Process) -> None:
    """ctr makes, lists and deletes leases."""
    assert metadatad.ctr("leases", "create", "--id", "l1", "k=v").stdout.strip() == "l1"
    listed = metadatad.ctr("leases", "ls").stdout
    assert "l1" in listed
    assert "k=v" in listed
    assert metadatad.ctr("leases", "delete", "--sync", "l1").returncode == 0
    assert metadatad.ctr("leases", "ls", "-q").stdout.strip() == ""


def test_ctr_containers(metadatad: Process, tmp_path: Path) -> None:
    """ctr makes a container from a file, shows it with its specification, labels and deletes it."""
    spec = tmp_path / "config.json"
    spec.write_text(json.dumps({"ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/"}}))
    made = metadatad.ctr("containers", "create", "--config", str(spec), "--label", "k=v", "c1")
    assert made.returncode == 0, made.stderr
    shown = json.loads(metadatad.ctr("containers", "info", "c1").stdout)
    assert (shown["ID"], shown["Labels"], shown["Spec"]["process"]["args"]) == ("c1", {"k": "v"}, ["true"])
    assert metadatad.ctr("containers", "label", "c1", "k=w").returncode == 0
    assert metadatad.ctr("containers", "ls", "-q", 'labels."k"==w').stdout.split() == ["c1"]
    assert metadatad.ctr("containers", "ls", "-q", "labels.k==v").stdout.split() == []
    assert "failed precondition" in metadatad.ctr("namespaces", "remove", "default").stderr
    assert metadatad.ctr("containers", "rm", "c1").returncode == 0
    assert "not found" in metadatad.ctr("containers", "info", "c1").stderr


def test_ctr_images_label(metadatad: Process) -> None:
    """A label of an image that is not there is not found."""
    assert "not found" in metadatad.ctr("images", "label", "nothing", "a=b").stderr


def test_ctr_events(metadatad: Process) -> None:
    """ctr shows events with their payload, and its stream does not hold up the end of the service."""
    command = ["ctr", "-a", str(metadatad.socket), "events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as events:
        try:
            assert events.stdout is not None
            seen, limit = b"", time.monotonic() + 20
            while b'/namespaces/create {"name":"ns' not in seen:
                assert time.monotonic() < limit
                metadatad.ctr("namespaces", "create", f"ns{time.monotonic_ns()}")
                while select.select([events.stdout], [], [], 0.1)[0] and (
                    data := os.read(events.stdout.fileno(), 4096)
                ):
                    seen += data
            start = time.monotonic()
            assert metadatad.stop() == 0
            assert time.monotonic() - start < 4.5
        finally:
            events.kill()


def test_acknowledged_survives_sudden_death(metadatad: Process) -> None:
    """After kill -9 everything that was acknowledged is there, and the service starts again."""
    for i in range(5):
        assert metadatad.ctr("namespaces", "create", f"ns{i}").returncode == 0
    metadatad.kill()
    metadatad.restart()
    assert metadatad.ctr("namespaces", "ls", "-q").stdout.split() == [f"ns{i}" for i in range(5)]


def test_second_instance_is_refused(metadatad: Process, tmp_path: Path) -> None:
    """A second service on the same directory ends with a sentence that says why, and the first goes on."""
    command = [sys.executable, "-m", "metadatad", "--root", str(tmp_path / "root")]
    command += ["--state", str(tmp_path / "other")]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode != 0
    assert "is in use by another process" in second.stderr
    assert metadatad.ctr("namespaces", "ls").returncode == 0


def test_directories_are_closed(metadatad: Process) -> None:
    """Only the owner can reach the database; the directory of sockets can be passed through but not listed."""
    assert (metadatad.directory / "root" / "metadatad").stat().st_mode & 0o777 == 0o700
    assert metadatad.socket.parent.stat().st_mode & 0o777 == 0o711
