"""Sockets that are not there, not permitted, or of somebody else: one sentence, what to do, status 1."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent / "carina"


def asked(address: str, *, user: int | None = None) -> list[str]:
    """What `carina images ls` says on standard error."""
    command = [str(BIN), "--address", address, "images", "ls"]
    done = subprocess.run(command, capture_output=True, text=True, user=user, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@contextmanager
def listening(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Somebody else's server."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    answer(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _http(client: socket.socket) -> None:
    client.recv(100)
    client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def _ttrpc(client: socket.socket) -> None:
    """A ttrpc server takes the preface of HTTP/2 for a frame that is too long, and hangs up."""
    client.recv(100)


def test_nothing_there(tmp_path: Path) -> None:
    """A socket that is not there."""
    lines = asked(f"unix://{tmp_path}/none.sock")
    assert "nothing answers at" in lines[0]
    assert "There is no such socket. Is Carina up? `carina up --detach` starts it" in lines[1]


def test_not_a_socket(tmp_path: Path) -> None:
    """A file of another kind."""
    (tmp_path / "file").write_text("")
    assert "is not a socket" in asked(f"unix://{tmp_path}/file")[1]


def test_nobody_listens(tmp_path: Path) -> None:
    """What a process left that was killed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.sock"))
    assert "Nobody listens on it any more" in asked(f"unix://{tmp_path}/s.sock")[1]


@pytest.mark.root
def test_not_permitted(tmp_path: Path) -> None:
    """A socket that this user may not connect to."""
    place = tmp_path
    while place != Path("/tmp") and place != Path("/"):
        place.chmod(0o755)
        place = place.parent
    with listening(tmp_path / "s.sock", _http):
        os.chmod(tmp_path / "s.sock", 0o600)
        if not _reachable(BIN):
            pytest.skip("this checkout is not readable for other users")
        assert "You may not connect to it: try again as root" in asked(f"unix://{tmp_path}/s.sock", user=65534)[1]


def _reachable(program: Path) -> bool:
    done = subprocess.run([str(program), "--version"], capture_output=True, user=65534, check=False)
    return done.returncode == 0


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [(_http, "a web server, not a gRPC service"), (_ttrpc, "speaks another protocol than gRPC")],
)
def test_somebody_else(tmp_path: Path, answer: Callable[[socket.socket], None], sentence: str) -> None:
    """A socket on which something else is spoken."""
    with listening(tmp_path / "s.sock", answer):
        lines = asked(f"unix://{tmp_path}/s.sock")
    assert sentence in lines[1]


@pytest.mark.parametrize("address", ["tcp://1.2.3.4:5", "relative.sock", "unix://" + "x" * 200])
def test_no_address(address: str) -> None:
    """What is no address at all is said to be none before anything is done."""
    done = subprocess.run([BIN, "--address", address, "images", "ls"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected unix:///path/of/socket" in done.stderr or "at most 107" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pull", "UPPER/Case:tag"), "UPPER/Case:tag"),
        (("pull", "--platform", "linux/amd64/v1/x", "busybox"), "linux/amd64/v1/x"),
        (("content", "get", "sha256:abc"), "sha256:abc"),
        (("run", "a b", "id"), "a b"),
        (("run", "busybox"), "ID is missing"),
        (("-n", "bad name", "images", "ls"), "namespace 'bad name' is not valid"),
    ],
)
def test_values_that_are_none(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    """A reference, platform, digest or namespace that is none is named in one sentence; nobody is asked."""
    command = [str(BIN), "--address", f"unix://{tmp_path}/none.sock", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr.splitlines()[0]
    assert "nothing answers" not in done.stderr
    assert "Traceback" not in done.stderr
