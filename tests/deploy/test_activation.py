"""Daemons under a service manager: sockets that outlive them, readiness, signs of life."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import context
from carina.content.client import RemoteContentStore
from carina.rpc.client import connect
from carina.rpc.health import probe
from support.activator import BIN, Activator


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="carina-", dir="/tmp") as path:
        (Path(path) / "state").mkdir()
        yield Path(path)


def paths(directory: Path) -> list[str]:
    return ["--root", str(directory / "root"), "--state", str(directory / "state")]


def sockets_of_contentd(directory: Path) -> dict[str, Path]:
    return {"contentd": directory / "state/contentd.sock", "lane": directory / "state/contentd.fd.sock"}


async def _write(address: str) -> bytes:
    channel = connect(address)
    try:
        with context.deadline(60):
            store = RemoteContentStore(channel)
            async with await store.writer("ref") as writer:
                await writer.write(b"through the lane")
                digest = await writer.commit()
            async with await store.reader(digest) as reader:
                return await reader.read(0, 100)
    finally:
        channel.close()


async def _probe(address: str) -> str:
    channel = connect(address)
    try:
        with context.deadline(60):
            return (await probe(channel))[0]
    finally:
        channel.close()


def test_a_restarted_service_refuses_no_connection(directory: Path) -> None:
    """Connections made while no process is there are answered by the next one; the sockets stay the same files."""
    sockets = sockets_of_contentd(directory)
    with Activator(directory, sockets) as manager:
        inodes = [path.stat().st_ino for path in sockets.values()]
        manager.start("contentd", *paths(directory))
        assert asyncio.run(_write(f"unix://{sockets['contentd']}")) == b"through the lane"
        for number in (signal.SIGKILL, signal.SIGTERM):
            manager.kill(number)
            waiting = [socket.socket(socket.AF_UNIX) for _ in range(50)]
            for peer in waiting:
                peer.connect(os.fspath(sockets["contentd"]))
            manager.start("contentd", *paths(directory))
            for peer in waiting:
                peer.settimeout(30)
                assert peer.recv(9)[3:4] == b"\x04"  # SETTINGS, a server's first frame
                peer.close()
        assert asyncio.run(_probe(f"unix://{sockets['contentd']}")) == "ok"
        assert [path.stat().st_ino for path in sockets.values()] == inodes


def test_the_socket_of_shims_events_is_passed_as_well(directory: Path) -> None:
    """taskd takes the ttrpc socket beside the gateway's from the service manager, and leaves it."""
    sockets = {"taskd": directory / "state/taskd.sock", "events": directory / "state/carina.sock.ttrpc"}
    with Activator(directory, sockets) as manager:
        inodes = [path.stat().st_ino for path in sockets.values()]
        manager.start("taskd", *paths(directory))
        manager.until("READY=1")
        assert manager.kill(signal.SIGTERM) == 0
        assert [path.stat().st_ino for path in sockets.values()] == inodes


def test_signs_of_life_come_from_the_event_loop(directory: Path) -> None:
    """WATCHDOG=1 comes several times in each period while the loop turns, and not while the process stands still."""
    with Activator(directory, sockets_of_contentd(directory), watchdog=0.6) as manager:
        process = manager.start("contentd", *paths(directory))
        manager.until("READY=1")
        for _ in range(3):
            manager.until("WATCHDOG=1")
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        manager.forget()
        manager.notifications.settimeout(1.0)
        with pytest.raises(TimeoutError):
            manager.notifications.recv(100)
        process.send_signal(signal.SIGCONT)
        manager.notifications.settimeout(30)
        manager.until("WATCHDOG=1")


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("other", "other.sock", "is not one that this service listens on"),
        ("stream", "contentd.fd.sock", "is of another kind: expected one of ListenSequentialPacket="),
    ],
)
def test_sockets_that_contradict_the_configuration(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str, said: str
) -> None:
    """A socket that nobody would answer on is refused at the start, in a sentence that names it."""
    monkeypatch.setattr("support.activator.KINDS", {})
    with Activator(directory, {name: directory / "state" / path}) as manager:
        assert manager.start("contentd", *paths(directory)).wait(30) == 1
        last = manager.log.read_text().splitlines()[-1]
    assert said in last
    assert f"{directory}/state/{path}, passed as {name}," in last


NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
DAEMONS = ["contentd", "metadatad", "gatewayd", "imaged", "taskd", "snapshotd"]


def _state(directory: Path) -> list[tuple[str, int, int, int]]:
    found = []
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_mode, status.st_uid, status.st_mtime_ns))
    return found


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_service_of_the_wrong_user_changes_nothing(directory: Path, daemon: str) -> None:
    """Started as another user than its directory's, a service says so in one line, and no file is made or changed."""
    own = directory / "root" / ("snapshotd-overlayfs" if daemon == "snapshotd" else daemon)
    own.mkdir(parents=True)
    directory.chmod(0o755)
    before = _state(directory)
    for command, said in _wrong(daemon, own):
        done = subprocess.run(
            [*command, str(BIN / daemon), *paths(directory)], capture_output=True, text=True, timeout=50, check=False
        )
        assert done.returncode == 1, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert said in done.stderr
        assert _state(directory) == before


def _wrong(daemon: str, own: Path) -> Iterator[tuple[list[str], str]]:
    privileged = daemon in ("imaged", "taskd", "snapshotd")
    said = "needs root, to" if privileged else f"directory {own} belongs to user root, and {daemon} runs as nobody"
    yield NOBODY, said
    if privileged:
        yield ["setpriv", "--bounding-set=-sys_admin", "--"], "needs CAP_SYS_ADMIN, to"


def test_root_leaves_another_users_store_alone(directory: Path) -> None:
    """Root could write there, and its files would be in the way of the right user: refused."""
    own = directory / "root" / "contentd"
    own.mkdir(parents=True)
    os.chown(own, 65534, 65534)
    done = subprocess.run(
        [str(BIN / "contentd"), *paths(directory)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert f"directory {own} belongs to user nobody, and contentd runs as root: start it as nobody" in done.stderr
    assert list(own.iterdir()) == []


def test_an_ordinary_user_is_enough(directory: Path) -> None:
    """contentd serves as a user without any right but that to its directory; who is not in the group gets nothing."""
    sockets = sockets_of_contentd(directory)
    directory.chmod(0o711)
    own = directory / "root" / "contentd"
    own.mkdir(parents=True, mode=0o700)
    os.chown(own, 65534, 65534)
    with Activator(directory, sockets) as manager:
        (directory / "manager.sock").chmod(0o666)
        manager.start_as(NOBODY, "contentd", *paths(directory))
        assert asyncio.run(_write(f"unix://{sockets['contentd']}")) == b"through the lane"
        assert manager.process is not None
        status = Path(f"/proc/{manager.process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert {path.stat().st_uid for path in own.rglob("*")} == {65534}
        outsider = subprocess.run(
            ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--", "/usr/bin/python3", "-c", _CONNECT]
            + [str(path) for path in sockets.values()],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert outsider.stdout.split() == ["PermissionError", "PermissionError"], outsider.stderr


_CONNECT = """
import socket, sys
for path, kind in zip(sys.argv[1:], (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)):
    try:
        socket.socket(socket.AF_UNIX, kind).connect(path)
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"""
