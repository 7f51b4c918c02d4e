"""Listening unix sockets: one appears when it can be answered on, and belongs to one process at a time."""

import contextlib
import fcntl
import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carina.errors import FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted
from carina.rpc.guard import Peer

BACKLOG: Final = 1024
FIRST_INHERITED: Final = 3
"""sd_listen_fds(3)."""
SO_PEERGROUPS: Final = 59
GROUPS_BYTES: Final = 1024
"""What Python's getsockopt takes at the most: 256 groups. Of who is in more, the first group alone counts."""
_PROBE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A listening socket, and which file it is if it is ours to unlink."""

    sock: socket.socket
    path: Path
    identity: tuple[int, int] | None

    gid: int | None
    """Members of this group may connect; None: the file lets no group."""

    def unlink(self) -> None:
        """Remove the socket's file, unless it is inherited or somebody else's by now."""
        if self.identity is None:
            return  # nor need this user be allowed to open the directory
        with _locked(self.path.parent):
            if _identity(self.path) == self.identity:
                self.path.unlink()


def bind(path: Path, *, mode: int, gid: int | None, kind: int = socket.SOCK_STREAM) -> Bound:
    """Listen at a path, with the socket that was inherited for it if there is one.

    The file appears under its name only when it can be connected to, with its final mode and group.
    Those of an inherited socket are the service manager's to choose, and its group is who may connect.

    Raises:
        InvalidArgument: the directory does not exist, something else than a socket is there,
            or the inherited socket is of another kind.
        FailedPrecondition: a process listens there.
        PermissionDenied, ResourceExhausted: what the file system says.
    """
    inherited = _inherited(path, kind)
    if inherited is not None:
        return Bound(sock=inherited, path=path, identity=None, gid=_group(path))
    if not path.parent.is_dir():
        raise InvalidArgument(f"directory {path.parent} of socket {path} does not exist")
    try:
        with _locked(path.parent):
            _refuse_used(path, kind)
            return _bind(path, mode=mode, gid=gid, kind=kind)
    except PermissionError as error:
        raise PermissionDenied(f"socket {path}: {error.strerror}") from error
    except OSError as error:
        raise ResourceExhausted(f"socket {path}: {error.strerror}") from error


def _bind(path: Path, *, mode: int, gid: int | None, kind: int) -> Bound:
    # In the same directory, and never longer than the path itself, which fits into a socket's address.
    temporary = path.with_name(f".{secrets.token_hex(4)}"[: max(2, len(os.fsencode(path.name)))])
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind(os.fspath(temporary))
        try:
            temporary.chmod(mode)
            if gid is not None:
                os.chown(temporary, -1, gid)
            sock.listen(BACKLOG)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BaseException:
        sock.close()
        raise
    # The file's group may be the directory's (set-group-id): it says who may connect.
    return Bound(sock=sock, path=path, identity=_identity(path), gid=path.stat().st_gid)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time looks at a directory's sockets and replaces them."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _refuse_used(path: Path, kind: int) -> None:
    """A socket that nobody listens on is stale and may be replaced."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InvalidArgument(f"socket {path} can't be made: something else is there")
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            raise FailedPrecondition(f"socket {path} is in use: {error.strerror or 'it does not answer'}") from error
        pid, _, _ = credentials(probe)
    raise FailedPrecondition(f"socket {path} is in use by pid {pid}")


def _inherited(path: Path, kind: int) -> socket.socket | None:
    """The socket at this path that a service manager passed to this process."""
    for number, name in _passed():
        try:
            sock = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        if not _is_at(sock, path):
            sock.close()
            continue
        if sock.type != kind or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.close()
            expected = "ListenSequentialPacket=" if kind == socket.SOCK_SEQPACKET else "ListenStream="
            raise InvalidArgument(f"socket {path}, passed as {name}, is of another kind: expected one of {expected}")
        _claimed.add(number)
        os.set_inheritable(number, False)  # nor is it the business of a process that we start
        sock.setblocking(False)
        return sock
    return None


def refuse_unclaimed() -> None:
    """For whoever has bound all of its sockets: what was passed beside them would leave its clients waiting for ever.

    Raises:
        InvalidArgument: a socket was passed to this process that it does not listen on.
    """
    for number, name in _passed():
        if number not in _claimed:
            with socket.socket(fileno=os.dup(number)) as sock:
                address = sock.getsockname()
            raise InvalidArgument(
                f"socket {address or number}, passed as {name}, is not one that this service listens on: "
                "its socket unit and the configuration must name the same paths"
            )


_claimed: Final[set[int]] = set()
"""Inherited descriptors that are listened on."""


def _passed() -> list[tuple[int, str]]:
    """Descriptors that were passed to this process, with their names: sd_listen_fds_with_names(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    numbers = range(FIRST_INHERITED, FIRST_INHERITED + (int(count) if count.isdecimal() else 0))
    return [(number, names[i] if i < len(names) and names[i] else "unknown") for i, number in enumerate(numbers)]


def _is_at(sock: socket.socket, path: Path) -> bool:
    """Whether a socket is the one at a path, by whichever way that leads there (/var/run is /run)."""
    if sock.family != socket.AF_UNIX:
        return False
    name = sock.getsockname()
    return bool(name) and isinstance(name, str) and os.path.realpath(name) == os.path.realpath(path)


def _group(path: Path) -> int | None:
    found = path.stat()
    # Where its group may not connect, the file system says so before we are asked.
    return found.st_gid if found.st_mode & stat.S_IWGRP else None


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of the peer when it connected (or began to listen)."""
    size = struct.calcsize("iII")
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid, gid


def peer(sock: socket.socket) -> Peer:
    """Who connected, with supplementary groups as they were then: nothing that can have changed since."""
    pid, uid, gid = credentials(sock)
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
    except OSError:
        groups = b""
    return Peer(pid=pid, uid=uid, gid=gid, groups=frozenset(struct.unpack(f"{len(groups) // 4}I", groups)))


def admits(who: Peer, *, gid: int | None) -> bool:
    """Whether the peer may talk to us: root, our own user, or a member of the socket's group."""
    return who.uid in (0, os.geteuid()) or who.is_in(os.getegid() if gid is None else gid)
