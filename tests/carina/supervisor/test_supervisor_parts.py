"""The pieces of the supervisor: its lock, the notify socket, logs, directories, survivors."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carina.config import load
from carina.errors import FailedPrecondition
from carina.supervisor import lock, survivors
from carina.supervisor.notify import NotifySocket
from carina.supervisor.supervisor import LARGE_LOG, make_directories, open_log

HOLD = """
import sys, time, pathlib
from carina.supervisor import lock
with lock.hold(pathlib.Path(sys.argv[1]), "root"):
    print("held", flush=True)
    time.sleep(60)
"""
SAY = """
import socket, sys
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1\\nMAINPID=1\\nodd", sys.argv[1])
"""
LISTEN = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("on", flush=True)
time.sleep(60)
"""


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    """Who holds the lock is the kernel's answer: a pid left in the file by a dead process is never given."""
    assert lock.holder(tmp_path) is None
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert lock.holder(tmp_path) == other.pid
        with pytest.raises(FailedPrecondition, match=f"pid {other.pid}"), lock.hold(tmp_path, "root"):
            pass
        other.kill()
    assert lock.holder(tmp_path) is None
    with lock.hold(tmp_path, "root"):
        pass


def test_asking_for_the_holder_disturbs_nobody(tmp_path: Path) -> None:
    """While others ask who holds the lock, taking it works at each attempt."""
    ask = (
        "import sys, pathlib; from carina.supervisor import lock\n"
        "print('on', flush=True)\nwhile True: lock.holder(pathlib.Path(sys.argv[1]))"
    )
    (tmp_path / "lock").touch()
    with subprocess.Popen([sys.executable, "-c", ask, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for _ in range(2000):
            with lock.hold(tmp_path, "root"):
                pass
        other.kill()


def test_a_notification_carries_the_senders_pid(tmp_path: Path) -> None:
    """What a process says comes with the pid that the kernel vouches for, whatever it says it is."""
    with NotifySocket(tmp_path / "n") as notify:
        assert notify.path.stat().st_mode & 0o777 == 0o600
        with subprocess.Popen([sys.executable, "-c", SAY, str(notify.path)]) as sender:
            sender.wait(20)
        assert notify.receive() == [(sender.pid, {"READY": "1", "MAINPID": "1"})]
        assert notify.receive() == []
    assert not notify.path.exists()


def test_a_large_log_is_put_aside(tmp_path: Path) -> None:
    """A log is appended to; one that has grown large is kept under another name."""
    path = tmp_path / "taskd.log"
    path.write_text("before\n")
    os.close(open_log(path))
    assert path.read_text() == "before\n"

    os.truncate(path, LARGE_LOG + 1)
    os.close(open_log(path))
    assert path.stat().st_size == 0
    assert (tmp_path / "taskd.log.1").stat().st_size == LARGE_LOG + 1


def test_directories_that_are_everybodys_are_left_alone(tmp_path: Path) -> None:
    """A sticky directory in use, like /tmp, is refused and keeps its mode; a file in the way is named."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    make_directories(load(root=shared, state=tmp_path / "s"))
    assert shared.stat().st_mode & 0o7777 == 0o700
    (shared / "somebody's").touch()
    shared.chmod(0o1777)
    with pytest.raises(FailedPrecondition, match="shared with others"):
        make_directories(load(root=shared, state=tmp_path / "s"))
    assert shared.stat().st_mode & 0o7777 == 0o1777

    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=str(tmp_path / "file")):
        make_directories(load(root=tmp_path / "file" / "root", state=tmp_path / "s"))


def test_survivors_are_only_our_daemons(tmp_path: Path) -> None:
    """Whoever listens on a service's socket is found by name; a stranger is not taken for a service."""
    config = load(root=tmp_path / "r", state=tmp_path)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(tmp_path / "imaged.sock"))
        stranger.listen()
        with subprocess.Popen(
            ["contentd", "-c", LISTEN, str(tmp_path / "contentd.sock")],
            executable=sys.executable,
            stdout=subprocess.PIPE,
        ) as ours:
            assert ours.stdout is not None
            ours.stdout.readline()
            assert survivors.listener(tmp_path / "imaged.sock") == os.getpid()
            assert survivors.find(config) == {"content": ours.pid}
            survivors.end([ours.pid], grace=10)
            assert ours.wait(30) == -signal.SIGTERM
    assert survivors.find(config) == {}


def test_who_does_not_end_is_killed() -> None:
    """After its grace a process that ignores SIGTERM is killed; pids of nobody are passed over."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        survivors.end([process.pid, 2**22 - 1], grace=0.2)
        assert process.wait(30) == -signal.SIGKILL
        assert time.monotonic() - started < 20
