"""What the confined worker may ask of its parent: a few attributes, on descriptors of what it made itself.

One socket of whole messages joins them. The worker sends a verb, a blank, an argument, and one descriptor;
the answer is an errno, 0 for success. The worker's last message is its result.

    attribute NAME\\0VALUE    set an attribute that takes CAP_SYS_ADMIN; never one of overlayfs
    opaque                   make a directory of an overlay's upper directory opaque
    inherit PATH             take a directory's owner, mode and attributes from the layers below
"""

import array
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Final

from carina.linux.openat2 import open_in_root

_MESSAGE: Final = 192 << 10
_MAX_NAME: Final = 255
_INSIDE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPAQUE: Final = {False: b"trusted.overlay.opaque", True: b"user.overlay.opaque"}


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

    def _answer(self, message: bytes, descriptor: int) -> int:
        verb, _, argument = message.partition(b" ")
        verbs: dict[bytes, Callable[[int, bytes], None]] = {
            b"attribute": _set_attribute,
            b"opaque": self._make_opaque,
            b"inherit": self._inherit,
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

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def set_attribute(self, descriptor: int, name: bytes, value: bytes) -> None:
        self._ask(b"attribute " + name + b"\0" + value, descriptor)

    def make_opaque(self, descriptor: int) -> None:
        self._ask(b"opaque", descriptor)

    def inherit(self, descriptor: int, path: bytes) -> None:
        self._ask(b"inherit " + path, descriptor)

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
