"""One file served over the kernel's FUSE protocol (fuse(4), <linux/fuse.h> 7.31), without a library.

The file is the root of its file system, so nothing is looked up. It is opened with FOPEN_DIRECT_IO: no page cache
holds a write back, and requests are answered one at a time in the order in which the kernel sends them.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Final, Protocol

from carina.linux.libc import call

_MAX_WRITE: Final = 1 << 20
_IN: Final = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
_OUT: Final = struct.Struct("<IiQ")  # len, error, unique
_INIT: Final = struct.Struct("<IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN: Final = struct.Struct("<QII")
_IO: Final = struct.Struct("<QQI")  # fh, offset, size: how READ and WRITE begin
_WRITE_HEADER: Final = 40
_ALLOCATE: Final = struct.Struct("<QQQI")
_STATFS: Final = struct.Struct("<QQQQQIIII24x")

_GETATTR, _SETATTR, _OPENED, _READ, _WRITE, _STATED, _RELEASE = 3, 4, 14, 15, 16, 17, 18
_FSYNC, _FLUSH, _INITED, _DESTROY, _FALLOCATE = 20, 25, 26, 38, 43
_UNANSWERED: Final = frozenset((2, 36, 42))  # FORGET, INTERRUPT, BATCH_FORGET
_ASYNC_READ, _BIG_WRITES, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 22
_FOPEN_DIRECT_IO: Final = 1
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_S_IFREG: Final = 0o100000


class Backing(Protocol):
    """What the file's bytes are."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: memoryview) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...

    def flush(self) -> None: ...


def mount(path: str) -> int:
    """Mount over the file `path` and return the descriptor to serve on."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode={_S_IFREG | 0o600:o},user_id=0,group_id=0,max_read={_MAX_WRITE}"
    try:
        call("mount", b"powerloss", path.encode(), b"fuse", ctypes.c_ulong(0), options.encode())
    except OSError:
        os.close(device)
        raise
    return device


def serve(device: int, backing: Backing) -> None:
    """Answer requests until the file is unmounted."""
    buffer = bytearray(_MAX_WRITE + 4096)
    view = memoryview(buffer)
    while True:
        try:
            count = os.readv(device, [buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # a request that was taken back
                continue
            raise
        _, opcode, unique, *_ = _IN.unpack_from(buffer)
        if opcode in _UNANSWERED:
            continue
        number, answer = 0, b""
        try:
            answer = _answer(opcode, view[_IN.size : count], backing)
        except OSError as error:
            number = error.errno or errno.EIO
        os.writev(device, [_OUT.pack(_OUT.size + len(answer), -number, unique), answer])


def _answer(opcode: int, body: memoryview, backing: Backing) -> bytes:
    answers: dict[int, Callable[[memoryview, Backing], bytes]] = {
        _READ: _read,
        _WRITE: _write,
        _FSYNC: _fsync,
        _FALLOCATE: _allocate,
        _GETATTR: _attributes,
        _SETATTR: _attributes,
        _INITED: _init,
        _OPENED: lambda body, backing: _OPEN.pack(0, _FOPEN_DIRECT_IO, 0),
        _STATED: lambda body, backing: _STATFS.pack(backing.size // 4096, 0, 0, 1, 0, 4096, 255, 4096, 0),
        # FLUSH is what close(2) sends: it promises nothing of the disk.
        **dict.fromkeys((_RELEASE, _FLUSH, _DESTROY), lambda body, backing: b""),
    }
    if opcode not in answers:
        raise OSError(errno.ENOSYS, "not served")
    return answers[opcode](body, backing)


def _init(body: memoryview, backing: Backing) -> bytes:
    _, _, read_ahead, offered = struct.unpack_from("<IIII", body)
    flags = offered & (_ASYNC_READ | _BIG_WRITES | _MAX_PAGES)
    return _INIT.pack(7, 31, read_ahead, flags, 64, 48, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0, 0)


def _attributes(body: memoryview, backing: Backing) -> bytes:
    size = backing.size
    attributes = _ATTR.pack(1, size, size // 512, 0, 0, 0, 0, 0, 0, _S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0)
    return _ATTR_OUT.pack(3600, 0, 0) + attributes


def _read(body: memoryview, backing: Backing) -> bytes:
    _, offset, size = _IO.unpack_from(body)
    return backing.read(offset, size)


def _write(body: memoryview, backing: Backing) -> bytes:
    _, offset, size = _IO.unpack_from(body)
    backing.write(offset, body[_WRITE_HEADER : _WRITE_HEADER + size])
    return struct.pack("<II", size, 0)


def _fsync(body: memoryview, backing: Backing) -> bytes:
    backing.flush()
    return b""


def _allocate(body: memoryview, backing: Backing) -> bytes:
    _, offset, length, mode = _ALLOCATE.unpack_from(body)
    if mode not in (_KEEP_SIZE | _PUNCH_HOLE, _KEEP_SIZE | _ZERO_RANGE, _ZERO_RANGE):
        raise OSError(errno.EOPNOTSUPP, "not served")
    backing.zero(offset, length)
    return b""
