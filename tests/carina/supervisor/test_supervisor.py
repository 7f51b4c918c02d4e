"""A supervisor with services of a few lines: what it says, when it stops, what it starts again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, socket, sys, time
from pathlib import Path
from carina.supervisor.supervisor import Supervisor
from carina.config import load
from carina.errors import CarinaError

def ready():
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])

def steady(arguments):
    ready()
    time.sleep(60)

def attentive(arguments):
    signal.signal(signal.SIGHUP, lambda *_: print("reads again", flush=True))
    ready()
    while True:
        time.sleep(60)

def stubborn(arguments):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    steady(arguments)

def last_words(arguments):
    def end(*_):
        os.write(1, f"ends: {sys.argv[0]}\\n".encode())  # at once: others write to the same file
        os._exit(0)
    signal.signal(signal.SIGTERM, end)
    steady(arguments)

def short(arguments):
    ready()
    time.sleep(0.05)

def broken(arguments):
    raise KeyError("what is wrong")

def never(arguments):
    time.sleep(60)

directory = Path(sys.argv[1])
entries = dict(pair.split("=") for pair in sys.argv[2:])
supervisor = Supervisor(
    load(root=directory / "r", state=directory / "s"),
    {service: globals()[name] for service, name in entries.items()},
    on_ready=lambda: print("all ready", flush=True),
)
try:
    supervisor.run()
except CarinaError as error:
    sys.exit(f"failed: {error}")
"""


class Running:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, *services: str, stdout: int | None = None, terminal: int | None = None
    ) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", PROGRAM, str(self.directory), *services]
        if terminal is not None:
            command = ["setsid", "--ctty", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=terminal, stdout=stdout or log, stderr=log, start_new_session=terminal is None
            )
        return self.process

    def children(self) -> list[int]:
        assert self.process is not None
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for(self, text: str) -> None:
        limit = time.monotonic() + 20
        while text not in self.log.read_text():
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.01)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    run = Running(tmp_path)
    yield run
    if run.process is not None and run.process.poll() is None:
        children = run.children()
        run.process.kill()
        run.process.wait()
        for child in children:
            os.kill(child, signal.SIGKILL)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_everything(running: Running, number: int) -> None:
    """SIGTERM and SIGINT stop every service in order."""
    process = running.start("content=steady", "gateway=steady")
    running.wait_for("all ready")
    children = running.children()
    process.send_signal(number)

    assert process.wait(10) == 0
    assert len(children) == 2
    assert gone(children)


def test_a_hangup_is_passed_on(running: Running) -> None:
    """SIGHUP from somebody has services read their configuration again, and ends nothing."""
    process = running.start("content=attentive", "gateway=attentive")
    running.wait_for("all ready")
    process.send_signal(signal.SIGHUP)
    limit = time.monotonic() + 30
    while running.log.read_text().count("reads again") < 2:
        assert time.monotonic() < limit, running.log.read_text()
        time.sleep(0.01)

    assert process.poll() is None
    process.terminate()
    assert process.wait(30) == 0


def test_the_end_of_its_terminal_stops_everything(running: Running) -> None:
    """The terminal's own SIGHUP, when a connection or window is closed, stops what was started in it."""
    master, slave = os.openpty()
    try:
        process = running.start("content=attentive", "gateway=steady", terminal=slave)
        running.wait_for("all ready")
        children = running.children()
    finally:
        os.close(slave)
        os.close(master)

    assert process.wait(30) == 0
    assert len(children) == 2
    assert gone(children)


def test_a_signal_while_starting_stops_what_was_started(running: Running) -> None:
    """Signals at any moment of starting end the supervisor soon, with no service left."""
    for moment in range(6):
        process = running.start("content=steady", "metadata=steady", "tasks=never", "gateway=steady")
        time.sleep(0.1 + moment * 0.03)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) in (0, -signal.SIGTERM), running.log.read_text()
        left = subprocess.run(["pgrep", "-f", str(running.directory)], capture_output=True, text=True, check=False)
        assert left.stdout == ""


def test_a_second_signal_does_not_wait(running: Running) -> None:
    """A service that ignores SIGTERM is killed at once when the signal comes again."""
    process = running.start("content=stubborn", "gateway=stubborn")
    running.wait_for("all ready")
    process.terminate()
    time.sleep(0.2)
    started = time.monotonic()
    process.terminate()

    assert process.wait(30) == 0
    assert time.monotonic() - started < 9


def test_what_breaks_a_service_is_in_its_log(running: Running) -> None:
    """A service that fails before it has a log of its own leaves its traceback, and start-up fails by name."""
    process = running.start("content=steady", "metadata=broken")

    assert process.wait(10) == 1
    said = running.log.read_text()
    assert "KeyError: 'what is wrong'" in said
    assert "failed: metadatad ended with exit status 70 while starting" in said


def test_a_killed_service_is_started_again(running: Running) -> None:
    """A service that is killed comes back with another pid, and that is said."""
    running.start("content=steady", "gateway=steady")
    running.wait_for("all ready")
    first = running.children()[0]
    os.kill(first, signal.SIGKILL)
    running.wait_for("was killed by SIGKILL, starting it again")
    limit = time.monotonic() + 10
    while len(running.children()) < 2:
        assert time.monotonic() < limit
        time.sleep(0.01)

    assert first not in running.children()


def test_nobody_need_listen_to_the_supervisor(running: Running) -> None:
    """Where the reader of its output has gone, the constellation comes up all the same and stays up."""
    reading, writing = os.pipe()
    os.close(reading)
    process = running.start("content=steady", stdout=writing)
    os.close(writing)
    limit = time.monotonic() + 10
    while not (running.directory / "s" / "notify.sock").exists() or not running.children():
        assert time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(0.3)

    assert process.poll() is None, running.log.read_text()
    process.terminate()
    assert process.wait(10) == 0


def test_callers_end_before_what_they_call(running: Running) -> None:
    """The gateway ends first, then who works, then the records, and the stores last; each has ended before the next."""
    process = running.start(
        *(f"{name}=last_words" for name in ("content", "metadata", "images", "tasks", "gateway", "snapshots.native"))
    )
    running.wait_for("all ready")
    process.terminate()
    assert process.wait(30) == 0
    ended = [line.split()[-1] for line in running.log.read_text().splitlines() if line.startswith("ends:")]

    assert [ended[0], ended[3]] == ["gatewayd", "metadatad"]
    assert [sorted(ended[1:3]), sorted(ended[4:])] == [["imaged", "taskd"], ["contentd", "snapshotd-native"]]


def test_what_ends_again_and_again_is_waited_for_longer(running: Running) -> None:
    """The pause before a restart doubles each time, and the others are left alone."""
    running.start("content=steady", "gateway=short")
    for pause in ("0.1", "0.2", "0.4", "0.8"):
        running.wait_for(f"ended with exit status 0, starting it again in {pause} s")
    said = [line for line in running.log.read_text().splitlines() if "starting it again" in line]

    assert all(line.startswith("carina: gatewayd (pid ") for line in said)
