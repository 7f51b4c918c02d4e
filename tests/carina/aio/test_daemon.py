"""A daemon's process: signals, readiness, log and exit status."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import asyncio, logging, os, sys, time
from carina.aio.daemon import run
from carina.errors import FailedPrecondition

async def main(lifetime):
    what = sys.argv[1]
    if what == "refuse":
        raise FailedPrecondition("socket /x is in use by pid 1")
    if what == "group":
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse())
            await asyncio.sleep(60)
    if what == "bug":
        raise ValueError("unexpected")
    if what == "reload":
        reading = asyncio.create_task(lifetime.asked_to_reload())
        await asyncio.sleep(0)
    lifetime.ready()
    if what == "reload":
        await reading
        logging.getLogger("here").info("read again")
    await lifetime.stopped()
    if what == "stuck":
        await asyncio.sleep(60)
    logging.getLogger("here").info("loop %s, done", type(asyncio.get_running_loop()).__module__)

async def refuse():
    raise FailedPrecondition("socket /x is in use by pid 1")

if sys.argv[1] == "forked":
    sys.argv[1] = "run"
    child = os.fork()
    if child:
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
run("testd", main)
"""
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\w+) testd (.*)")


def _start(what: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CODE, what], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def _until_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert LINE.fullmatch(line.strip()), line


def test_sigterm_ends_it_well() -> None:
    """SIGTERM lets main return: status 0, one line per record, on uvloop, under the daemon's name."""
    process = _start("run")
    _until_ready(process)
    title = Path(f"/proc/{process.pid}/cmdline").read_text().strip("\0 ")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 0
    assert title == "testd"
    assert [match[2] for match in map(LINE.fullmatch, err.splitlines()) if match] == [
        "SIGTERM: stopping",
        "loop uvloop, done",
    ]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("reload", "read again"),
        ("run", "asked to reload: this service takes its settings over when it is started again"),
    ],
)
def test_sighup_reloads(what: str, said: str) -> None:
    """A daemon that can is told to read its configuration again; another one says that it can't, and goes on."""
    process = _start(what)
    _until_ready(process)
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert said in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_end_of_its_terminal_ends_it() -> None:
    """As it does for any program that was started in it."""
    master, slave = os.openpty()
    command = ["setsid", "--ctty", sys.executable, "-c", CODE, "run"]
    with subprocess.Popen(command, stdin=slave, stderr=subprocess.PIPE, text=True) as process:
        _until_ready(process)
        os.close(slave)
        os.close(master)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "SIGHUP: stopping" in err


def test_a_second_signal_ends_it_at_once() -> None:
    """Whoever asks twice is not kept waiting."""
    process = _start("stuck")
    _until_ready(process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)

    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("what", ["refuse", "group"])
def test_an_error_of_the_domain_is_one_line(what: str) -> None:
    """A daemon that can't start says why in one line, without a traceback, and exits with 1."""
    process = _start(what)
    _, err = process.communicate(timeout=30)
    match = LINE.fullmatch(err.strip())

    assert process.returncode == 1
    assert match is not None
    assert (match[1], match[2]) == ("ERROR", "socket /x is in use by pid 1")


def test_a_bug_leaves_its_traceback() -> None:
    """What nobody foresaw is logged with all there is to know, and the status is 1."""
    process = _start("bug")
    _, err = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "Traceback" in err
    assert "ValueError: unexpected" in err


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    """READY=1 and STOPPING=1 go to NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        manager.settimeout(30)
        process = _start("run", NOTIFY_SOCKET=f"{tmp_path}/notify")
        first = manager.recv(100)
        process.send_signal(signal.SIGTERM)
        second = manager.recv(100)
        process.communicate(timeout=30)

    assert (first, second) == (b"READY=1", b"STOPPING=1")


def test_it_runs_in_a_forked_child() -> None:
    """A supervisor that has loaded everything forks, and the child lives as a process of its own."""
    process = _start("forked")
    _until_ready(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    limit = time.monotonic() + 5
    while not children.read_text().split() and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    process.communicate(timeout=30)

    assert process.returncode == 0
