"""Containers with restart labels under a whole constellation, by `ctr` and `carina`."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from support.constellation import Constellation
from support.registry import Registry

pytestmark = pytest.mark.root

RUNNING = ("--label", "containerd.io/restart.status=running")
POLICY = "containerd.io/restart.policy"
STOPPED = "containerd.io/restart.explicitly-stopped"


@pytest.fixture(scope="module")
def quick() -> Iterator[Constellation]:
    """One that looks often."""
    config = "[tasks]\nrestart_interval_seconds = 0.5\n"
    with Constellation(config=config, namespace=f"carina-restart-{os.getpid()}") as running:
        yield running


def _pid(constellation: Constellation, id: str) -> int:
    """Of the running task; 0 for none."""
    for line in constellation.ctr("tasks", "ls").output.splitlines():
        if line.split()[0] == id and line.split()[2] == "RUNNING":
            return int(line.split()[1])
    return 0


def _new_pid(constellation: Constellation, id: str, before: int) -> int:
    limit = time.monotonic() + 60
    while (pid := _pid(constellation, id)) in (0, before):
        assert time.monotonic() < limit, constellation.log.read_text()[-3000:]
        time.sleep(0.1)
    return pid


def test_killed_and_explicitly_stopped(quick: Constellation, registry: Registry, reference: str) -> None:
    """A container that is killed runs again, also after taskd was killed; one that is explicitly stopped stays so."""
    quick.ctr("images", "pull", "--plain-http", reference)
    again = ("run", "-d", *RUNNING, "--label", f"{POLICY}=unless-stopped", reference, "again", "sleep", "1000")
    quick.ctr(*again)
    quick.carina("run", "-d", *RUNNING, reference, "also", "sleep", "1000")
    pids = {id: _pid(quick, id) for id in ("again", "also")}
    for id, pid in pids.items():
        quick.ctr("tasks", "kill", "-s", "SIGKILL", id)
        assert _new_pid(quick, id, pid) != pid
    assert "containerd.io/restart.count" in quick.ctr("containers", "info", "again").output

    taskd = _service(quick, "taskd")
    os.kill(taskd, signal.SIGKILL)
    before = {id: _child(quick, id) for id in pids}
    limit = time.monotonic() + 30
    while _service(quick, "taskd") in (0, taskd):
        assert time.monotonic() < limit
        time.sleep(0.1)
    for id, pid in before.items():
        assert _new_pid(quick, id, pid) != pid

    quick.ctr("containers", "label", "again", f"{STOPPED}=true")
    quick.ctr("containers", "label", "also", "containerd.io/restart.status=stopped")
    quick.ctr("tasks", "kill", "-s", "SIGKILL", "again")
    quick.wait_for("tasks", "ls", text="STOPPED")
    limit = time.monotonic() + 30
    while "also" in quick.ctr("tasks", "ls", "-q").output:
        assert time.monotonic() < limit
        time.sleep(0.1)
    time.sleep(2)  # several looks
    assert (_pid(quick, "again"), _pid(quick, "also")) == (0, 0)
    assert "restart" in quick.ctr("plugins", "ls").output


def _service(constellation: Constellation, name: str) -> int:
    lines = constellation.carina("status", *constellation.paths, check=False).output.splitlines()[1:]
    return next((int(f[2]) for f in map(str.split, lines) if f[0] == name and f[1] == "ok"), 0)


def _child(constellation: Constellation, id: str) -> int:
    """Kill the container's process while taskd is away; its pid."""
    bundle = constellation.state / "io.containerd.runtime.v2.task" / constellation.namespace / id
    pid = int((bundle / "init.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    return pid
