"""What the confined worker may ask of its parent: a few attributes, on descriptors of what it made itself.

One socket of whole messages joins them. The worker sends a verb, a blank, an argument, and one descriptor;
the answer is an errno, 0 for success. The worker's last message is its result.

    attribute NAME\\0VALUE    set an attribute that takes CAP_SYS_ADMIN; never one of overlayfs
    opaque                   make a directory of an overlay's upper directory opaque
    inherit PATH             take a directory's owner, mode and attributes from the layers below
    copy PATH                copy a file from the layers below into this directory, under the same name
"""

import array
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Final

from carina.linux.filesystem import copy_data
from carina.linux.openat2 import open_in_root

_MESSAGE: Final = 192 << 10
_MAX_NAME: Final = 255
_INSIDE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE: Final = {False: "trusted.overlay.opaque", True: "user.overlay.opaque"}


class Broker:
    """The trusted end. `lowers` are descriptors of the directories below, the topmost first."""

    def __init__(self, *, lowers: Sequence[int] = (), user_attributes: bool = False) -> None:
        self._lowers = lowers
        self._opaque = _OPAQUE[user_attributes]

    def serve(self, channel: socket.socket) -> bytes:
        """Answer until the worker's result comes; empty if the worker is gone without one."""
        while True:
            message, descriptor = _received(channel)
            if descriptor is None:
                return message
            try:
                answer = self._answer(message, descriptor)
            finally:
                os.close(descriptor)
            channel.send(answer.to_bytes(4, "little"))

    def inherit_all(self, root: int, paths: Sequence[bytes]) -> None:
        """Have the directories at `paths` inherit; those that are none any more are passed over."""
        for path in paths:
            try:
                descriptor = open_in_root(root, path, _INSIDE | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                self._inherit(descriptor, path)
            finally:
                os.close(descriptor)

    def _answer(self, message: bytes, descriptor: int) -> int:
        verb, _, argument = message.partition(b" ")
        verbs: dict[bytes, Callable[[int, bytes], None]] = {
            b"attribute": _set_attribute,
            b"opaque": self._make_opaque,
            b"inherit": self._inherit,
            b"copy": self._copy,
        }
        try:
            verbs[verb](descriptor, argument)
        except OSError as error:
            return error.errno or errno.EIO
        except (KeyError, ValueError):
            return errno.EINVAL
        return 0

    def _make_opaque(self, descriptor: int, argument: bytes) -> None:
        del argument
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise ValueError("not a directory")
        os.setxattr(descriptor, self._opaque, b"y")

    def _copy(self, descriptor: int, path: bytes) -> None:
        name = path.rpartition(b"/")[2]
        found = self._find(path)
        try:
            # Only now: opening a device can do things.
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file")
            source = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
        try:
            target = os.open(name, _NEW, 0o600, dir_fd=descriptor)
            try:
                copy_data(source, target)
                _copy_metadata(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _find(self, path: bytes) -> int:
        """A descriptor of the file that the layers below show at `path`."""
        if not self._lowers:
            raise OSError(errno.ENOLINK, "no layers are below")
        for lower in self._lowers:
            try:
                return open_in_root(lower, path, _LOOK)
            except FileNotFoundError:
                if self._hides(lower, path):
                    break
        raise FileNotFoundError(errno.ENOENT, "nothing is there")

    def _hides(self, lower: int, path: bytes) -> bool:
        """Whether this layer hides what those below it have at `path`: a directory on the way is opaque."""
        parts = path.split(b"/")[:-1]
        for count in range(1, len(parts) + 1):
            try:
                directory = open_in_root(lower, b"/".join(parts[:count]), _INSIDE | os.O_NOFOLLOW)
            except FileNotFoundError:
                return False
            except OSError:
                return True
            try:
                if _is_opaque(directory, self._opaque):
                    return True
            finally:
                os.close(directory)
        return False

    def _inherit(self, descriptor: int, path: bytes) -> None:
        for lower in self._lowers:
            try:
                source = open_in_root(lower, path, _INSIDE | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            except OSError:
                # Something else than a directory: whatever lies further below is hidden.
                return
            try:
                _copy_metadata(source, descriptor)
            finally:
                os.close(source)
            return


class Asking:
    """The worker's end: `carina.layer.apply.Privileges` by way of the broker."""

    def __init__(self, channel: socket.socket, *, below: bool) -> None:
        self._channel = channel
        self._below = below
        """Whether there are layers below."""

    def set_attribute(self, descriptor: int, name: bytes, value: bytes) -> None:
        self._ask(b"attribute " + name + b"\0" + value, descriptor)

    def make_opaque(self, descriptor: int) -> None:
        self._ask(b"opaque", descriptor)

    def inherit(self, descriptor: int, path: bytes) -> None:
        if self._below:
            self._ask(b"inherit " + path, descriptor)

    def copy(self, descriptor: int, path: bytes) -> None:
        self._ask(b"copy " + path, descriptor)

    def _ask(self, message: bytes, descriptor: int) -> None:
        socket.send_fds(self._channel, [message], [descriptor])
        number = int.from_bytes(self._channel.recv(4), "little")
        if number:
            raise OSError(number, os.strerror(number))


def _received(channel: socket.socket) -> tuple[bytes, int | None]:
    space = socket.CMSG_SPACE(array.array("i", [0] * 4).itemsize * 4)
    message, ancillary, _, _ = channel.recvmsg(_MESSAGE, space)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    for extra in descriptors[1:]:
        os.close(extra)
    return message, descriptors[0] if descriptors else None


def _set_attribute(descriptor: int, argument: bytes) -> None:
    name, _, value = argument.partition(b"\0")
    if not name.startswith((b"trusted.", b"security.")) or name.startswith(b"trusted.overlay."):
        raise ValueError("not an attribute that a layer may set")
    if len(name) > _MAX_NAME:
        raise ValueError("the attribute's name is too long")
    os.setxattr(descriptor, name, value)


def _is_opaque(directory: int, attribute: str) -> bool:
    try:
        return os.getxattr(directory, attribute) == b"y"
    except OSError:
        return False


def _copy_metadata(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if name.startswith(("trusted.overlay.", "user.overlay.")):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EPERM, errno.ENODATA}:
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
