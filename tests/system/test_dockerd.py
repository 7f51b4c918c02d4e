"""An unmodified dockerd whose containers run on a constellation: what its users do all day."""

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image
from support.constellation import Constellation
from support.dockerd import Dockerd, missing

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(missing()), reason=missing() or "installed")]

IMAGE = "carina/busybox:1"
FOREVER = ("sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done")


@pytest.fixture(scope="module")
def own() -> Iterator[Constellation]:
    """A constellation whose services may be killed."""
    with Constellation(namespace=f"carina-dockerd-{os.getpid()}") as running:
        yield running


@pytest.fixture(scope="module")
def started(own: Constellation) -> Iterator[Dockerd]:
    with Dockerd(own) as running:
        running.docker("import", "-", IMAGE, stdin=image.busybox_tar())
        yield running


@pytest.fixture
def dockerd(started: Dockerd) -> Iterator[Dockerd]:
    yield started
    started.clean()


def run(dockerd: Dockerd, name: str, *command: str, options: tuple[str, ...] = ()) -> str:
    arguments = ("run", "--detach", "--network", "none", "--name", name, *options, IMAGE, *command)
    return dockerd.docker(*arguments).output.strip()


def service_pid(constellation: Constellation, name: str) -> int:
    lines = constellation.carina("status", *constellation.paths, check=False).output.splitlines()
    found = next(line.split() for line in lines if line.startswith(f"{name} "))
    return next(int(word) for word in found if word.isdecimal())


def in_terminal(command: list[str], typed: bytes) -> tuple[bytes, int]:
    """Output and exit status of a command that has a terminal, into which `typed` goes after its first output."""
    parent, child = pty.openpty()
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    shown = b""
    try:
        while True:
            try:
                shown += os.read(parent, 4096)
            except OSError:
                break
            if typed and b"ready" in shown:
                os.write(parent, typed)
                typed = b""
        return shown, process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def test_run(dockerd: Dockerd) -> None:
    """`docker run` passes input, output and exit status on, and names a command that is not there with status 127."""
    ran = dockerd.docker("run", "--rm", "--interactive", "--network", "none", IMAGE, "cat", stdin=b"through\n")
    failed = dockerd.docker("run", "--rm", "--network", "none", IMAGE, "sh", "-c", "echo oh >&2; exit 7", check=False)
    absent = dockerd.docker("run", "--rm", "--network", "none", IMAGE, "absent", check=False)

    assert ran.output == "through\n"
    assert (failed.status, failed.error) == (7, "oh\n")
    assert absent.status == 127
    assert 'exec: "absent": executable file not found' in absent.error
    assert dockerd.docker("ps", "--all", "--quiet").output == ""


def test_processes_inside(dockerd: Dockerd, own: Constellation, tmp_path: Path) -> None:
    """A running container takes further processes, tells its processes and use, and files are copied in and out."""
    id = run(dockerd, "inside", *FOREVER)

    assert dockerd.docker("exec", "--interactive", "inside", "cat", stdin=b"fed").output == "fed"
    assert dockerd.docker("exec", "inside", "sh", "-c", "exit 5", check=False).status == 5
    assert "executable file not found" in dockerd.docker("exec", "inside", "absent", check=False).output
    shown, status = in_terminal(
        dockerd.command("exec", "--interactive", "--tty", "inside", "sh", "-c", "tty; echo ready; read x; echo got $x"),
        b"line\n",
    )
    assert status == 0
    assert b"/dev/pts/" in shown
    assert b"got line" in shown
    assert "sh -c trap" in dockerd.docker("top", "inside").output
    assert "iB / " in dockerd.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", "inside").output
    (tmp_path / "file").write_text("copied")
    dockerd.docker("cp", str(tmp_path / "file"), "inside:/file")
    assert dockerd.docker("exec", "inside", "cat", "/file").output == "copied"
    dockerd.docker("cp", "inside:/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "copied"
    tasks = own.ctr("--namespace", dockerd.namespace, "tasks", "ls", "--quiet").output
    assert id in tasks


def test_logs_and_attach(dockerd: Dockerd) -> None:
    """What a container prints is in its log, and whoever attaches to it speaks with it."""
    run(dockerd, "spoken", "sh", "-c", "echo begun; while read x; do echo got $x; done", options=("--interactive",))
    dockerd.until("begun", "logs", "spoken")

    attached = subprocess.Popen(dockerd.command("attach", "spoken"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write(b"word\n")
        attached.stdin.flush()
        assert select.select([attached.stdout], [], [], 30)[0]
        assert attached.stdout.readline() == b"got word\n"
    finally:
        attached.kill()
        attached.communicate()
    dockerd.until("begun\ngot word\n", "logs", "spoken")


def test_ends(dockerd: Dockerd) -> None:
    """`stop` lets a container end by itself, `kill` does not, and `start` runs it again."""
    run(dockerd, "ended", *FOREVER)
    dockerd.until("up", "logs", "ended")
    dockerd.docker("stop", "--time", "30", "ended")
    assert dockerd.inspect("ended", "{{.State.Status}} {{.State.ExitCode}}") == "exited 0"

    dockerd.docker("start", "ended")
    dockerd.docker("kill", "ended")
    assert dockerd.docker("wait", "ended").output == "137\n"


def test_pause(dockerd: Dockerd) -> None:
    """A paused container does not run, and goes on afterwards."""
    run(dockerd, "paused", *FOREVER)

    dockerd.docker("pause", "paused")
    assert dockerd.inspect("paused", "{{.State.Status}}") == "paused"
    assert "is paused" in dockerd.docker("exec", "paused", "true", check=False).error
    dockerd.docker("unpause", "paused")
    assert dockerd.docker("exec", "paused", "echo", "on").output == "on\n"


def test_restart_policy(dockerd: Dockerd) -> None:
    """A container that fails is started again as often as its policy says."""
    run(dockerd, "again", "sh", "-c", "echo ran; exit 3", options=("--restart", "on-failure:2"))

    dockerd.until(
        "2 exited 3", "inspect", "--format", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "again"
    )
    assert dockerd.docker("logs", "again").output == "ran\n" * 3


def test_out_of_memory(dockerd: Dockerd) -> None:
    """A container beyond its memory limit is killed, and dockerd knows why; the limit can be changed as it runs."""
    limits = ("--memory", "16m", "--memory-swap", "16m")
    greedy = "x=$(dd if=/dev/zero bs=1M count=100 | tr '\\0' x); sleep 1"
    run(dockerd, "greedy", "sh", "-c", greedy, options=limits)
    run(dockerd, "modest", *FOREVER, options=limits)

    assert dockerd.docker("wait", "greedy").output == "137\n"
    dockerd.until("true", "inspect", "--format", "{{.State.OOMKilled}}", "greedy")
    dockerd.docker("update", "--memory", "64m", "--memory-swap", "64m", "modest")
    assert "/ 64MiB" in dockerd.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", "modest").output


def test_health(dockerd: Dockerd) -> None:
    """Health checks run in the container and their result follows its state."""
    check = ("--health-cmd", "test -e /well", "--health-interval", "200ms", "--health-retries", "1")
    run(dockerd, "health", *FOREVER, options=check)

    dockerd.until("unhealthy", "inspect", "--format", "{{.State.Health.Status}}", "health")
    dockerd.docker("exec", "health", "touch", "/well")
    dockerd.until("=healthy", "inspect", "--format", "={{.State.Health.Status}}", "health")


def still_runs(dockerd: Dockerd, name: str, pid: str) -> None:
    assert dockerd.inspect(name, "{{.State.Status}} {{.State.Pid}}") == f"running {pid}"
    dockerd.until("in\n", "exec", name, "echo", "in")
    dockerd.docker("stop", "--time", "30", name)
    assert dockerd.inspect(name, "{{.State.ExitCode}}") == "0"


@pytest.mark.parametrize("killed", ["dockerd", "taskd"])
def test_containers_outlive(dockerd: Dockerd, own: Constellation, killed: str) -> None:
    """Containers run on when dockerd or a service is killed; an end meanwhile is known with the right status."""
    run(dockerd, "stays", *FOREVER)
    run(dockerd, "ends", "sh", "-c", "until [ -e /end ]; do sleep 0.1; done; exit 9")
    pid = dockerd.inspect("stays", "{{.State.Pid}}")
    ends = int(dockerd.inspect("ends", "{{.State.Pid}}"))

    if killed == "dockerd":
        dockerd.kill()
    else:
        os.kill(service_pid(own, killed), signal.SIGKILL)
    Path(f"/proc/{ends}/root/end").touch()
    if killed == "dockerd":
        dockerd.start()

    dockerd.until("exited 9", "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "ends")
    still_runs(dockerd, "stays", pid)


@pytest.mark.parametrize("killed", ["metadatad", "gatewayd"])
def test_subscription_cut_off(dockerd: Dockerd, own: Constellation, killed: str) -> None:
    """Containers run on when a service is killed, and dockerd manages them once it has subscribed to events anew."""
    run(dockerd, "stays", *FOREVER)
    pid = dockerd.inspect("stays", "{{.State.Pid}}")

    os.kill(service_pid(own, killed), signal.SIGKILL)
    limit = time.monotonic() + 30
    while "subscribed" not in dockerd.docker("ps", "--all", "--filter", "exited=0", "--format", "{{.Names}}").output:
        # dockerd asks nobody for the events that it missed: an end before it has subscribed stays unknown to it.
        assert time.monotonic() < limit
        name = f"subscribed-{time.monotonic_ns()}"
        dockerd.docker("run", "--detach", "--network", "none", "--name", name, IMAGE, "true", check=False)

    still_runs(dockerd, "stays", pid)
