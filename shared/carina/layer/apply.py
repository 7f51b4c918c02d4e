"""The applier: a tar stream of changes into a tree, in plain form or in the form of an overlay's upper directory.

In plain form a whiteout removes what it names. In overlay form it becomes overlayfs's own mark (character device 0:0,
or the opaque attribute), because what it names is in the layers below, which are not there.
Later entries win over earlier ones; times of directories are set last.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, Protocol

from carina.errors import FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted
from carina.layer import Limits
from carina.layer.tar import Entry, Reader, shown
from carina.layer.tree import Directory, Tree

_WHITEOUT: Final = b".wh."
_META: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_OVERLAY_ATTRIBUTES: Final = (b"trusted.overlay.", b"user.overlay.")
_PRIVILEGED: Final = (b"trusted.", b"security.")
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 20
_MAX_TIME: Final = (1 << 63) - 1
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.EPERM}


class Privileges(Protocol):
    """What the applier can't do itself, confined as it is."""

    def set_attribute(self, descriptor: int, name: bytes, value: bytes) -> None:
        """setxattr(2) of an attribute that takes CAP_SYS_ADMIN. Raises OSError."""

    def make_opaque(self, descriptor: int) -> None:
        """Have overlayfs hide what the layers below have in this directory."""

    def inherit(self, descriptor: int, path: bytes) -> None:
        """Give a directory that no entry described the owner, mode and attributes it has in the layers below."""

    def copy(self, descriptor: int, path: bytes) -> None:
        """Copy the file that the layers below have at `path` into this directory.

        Raises:
            OSError: ENOENT if they have none, ENOLINK if there are no layers.
        """


class Applier:
    """Applies one layer to the tree below the descriptor `root`."""

    def __init__(self, root: int, *, overlay: bool, privileges: Privileges, limits: Limits) -> None:
        self._overlay = overlay
        self._privileges = privileges
        self._limits = limits
        self._tree = Tree(root, made=self._implied)
        self._times: dict[bytes, int] = {}
        self.implied: dict[bytes, None] = {}
        """Of overlay form: directories that no entry described."""
        self._unpacked: set[tuple[int, bytes]] = set()
        """In plain form: what this layer brought, as inode of the directory and name. An opaque mark spares it."""

    def run(self, reader: Reader) -> None:
        """Apply every entry.

        Raises:
            InvalidArgument: the archive is no layer.
            ResourceExhausted: the disk is full, or there are more entries than the limit.
            PermissionDenied: the process may not do what an entry takes.
        """
        count = 0
        try:
            while (entry := reader.next()) is not None:
                count += 1
                if count > self._limits.entries > 0:
                    raise ResourceExhausted(f"the layer has more than {self._limits.entries} entries")
                try:
                    self._apply(entry, reader)
                except (OSError, ValueError, OverflowError) as error:
                    raise _translated(error, entry) from error
            self._set_times()
        finally:
            self._tree.forget()

    def _apply(self, entry: Entry, reader: Reader) -> None:
        name = cleaned(entry.name)
        if not name or (name.startswith(_META) and name != _OPAQUE):
            # The root itself keeps what its snapshot gave it; the other names are aufs's book-keeping.
            return
        path, _, base = name.rpartition(b"/")
        directory = self._tree.directory(path)
        if base.startswith(_WHITEOUT):
            if base == _OPAQUE:
                self._make_opaque(directory)
            else:
                self._whiteout(path, base.removeprefix(_WHITEOUT), entry)
            return
        if not self._overlay:
            self._unpacked.add((directory.inode, base))
        kind = entry.kind
        if kind == "0":
            self._file(entry, reader, path=path, base=base)
        elif kind == "5":
            self._directory(entry, path=path, base=base)
            self._times[name] = entry.mtime
            self.implied.pop(name, None)
            return
        elif kind == "1":
            self._hard_link(entry, path=path, base=base)
        elif kind == "2":
            self._other(entry, path=path, base=base)
        elif kind == "3" and entry.major == entry.minor == 0:
            # To overlayfs, wherever this tree becomes a layer, such a device is a whiteout and nothing else.
            self._whiteout(path, base, entry)
        else:
            self._other(entry, path=path, base=base)
        if self._times:
            self._times.pop(name, None)

    def _file(self, entry: Entry, reader: Reader, *, path: bytes, base: bytes) -> None:
        directory = self._tree.directory(path)
        mode = entry.mode
        owned = entry.uid or entry.gid or directory.inherits
        special = bool(owned and (mode & 0o7000 or directory.inherits))
        first = mode & 0o777 if owned else mode
        try:
            descriptor = os.open(base, _CREATE, first, dir_fd=directory.descriptor)
        except FileExistsError:
            self._tree.remove(path, base)
            descriptor = os.open(base, _CREATE, first, dir_fd=self._tree.directory(path).descriptor)
        try:
            if entry.size or entry.segments is not None:
                _fill(descriptor, entry, reader)
            if owned:
                os.fchown(descriptor, entry.uid, entry.gid)
            if special:
                # After the owner: changing that takes the set-user-ID bit away.
                os.fchmod(descriptor, mode)
            if entry.xattrs is not None:
                self._set_attributes(descriptor, entry.xattrs)
            os.utime(descriptor, ns=_times(entry.mtime))
        finally:
            os.close(descriptor)

    def _directory(self, entry: Entry, *, path: bytes, base: bytes) -> None:
        directory = self._tree.directory(path)
        fresh, covered = True, False
        try:
            os.mkdir(base, entry.mode & 0o777, dir_fd=directory.descriptor)
        except FileExistsError:
            fresh = stat.S_ISDIR(os.lstat(base, dir_fd=directory.descriptor).st_mode) is False
            if fresh:
                self._tree.remove(path, base)
                directory = self._tree.directory(path)
                os.mkdir(base, entry.mode & 0o777, dir_fd=directory.descriptor)
                # What was there hid the directory of the layers below, so this one must go on hiding it.
                covered = self._overlay
        plain = not (entry.uid or entry.gid or entry.mode & 0o7000 or entry.xattrs is not None or directory.inherits)
        if fresh and plain and not covered:
            return
        descriptor = os.open(base, _DIRECTORY, dir_fd=directory.descriptor)
        try:
            os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode)
            if covered:
                self._privileges.make_opaque(descriptor)
            if entry.xattrs is not None:
                self._set_attributes(descriptor, entry.xattrs)
        finally:
            os.close(descriptor)
        if not fresh or entry.mode & stat.S_ISGID or entry.xattrs is not None:
            self._tree.forget()

    def _hard_link(self, entry: Entry, *, path: bytes, base: bytes) -> None:
        source, _, name = cleaned(entry.link).rpartition(b"/")
        if not name:
            raise InvalidArgument(f"{shown(entry.name)} in the layer is a hard link to nothing")
        here, there = self._both(path, source)
        try:
            os.link(name, base, src_dir_fd=there.descriptor, dst_dir_fd=here.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            if not self._overlay:
                raise
            self._copy_up(entry, source, name)
            here, there = self._both(path, source)
            os.link(name, base, src_dir_fd=there.descriptor, dst_dir_fd=here.descriptor, follow_symlinks=False)
        except FileExistsError:
            if here.inode == there.inode and name == base:
                raise InvalidArgument(f"{shown(entry.name)} in the layer is a hard link to itself") from None
            self._tree.remove(path, base)
            here, there = self._both(path, source)
            os.link(name, base, src_dir_fd=there.descriptor, dst_dir_fd=here.descriptor, follow_symlinks=False)

    def _both(self, path: bytes, source: bytes) -> tuple[Directory, Directory]:
        # Opening the one may close the other if that is the oldest; asked for again, it is not.
        self._tree.directory(path)
        there = self._tree.directory(source, make=self._overlay)
        return self._tree.directory(path), there

    def _copy_up(self, entry: Entry, path: bytes, name: bytes) -> None:
        """Have a file of the layers below in this one too, so that it can be linked to."""
        try:
            self._privileges.copy(self._tree.directory(path).descriptor, path + b"/" + name if path else name)
        except OSError as error:
            if error.errno == errno.ENOLINK:
                raise FailedPrecondition(
                    f"{shown(entry.name)} in the layer is a hard link into the layers below, which are not there"
                ) from error
            raise

    def _other(self, entry: Entry, *, path: bytes, base: bytes) -> None:
        """A symbolic link, device or FIFO: nothing that could be opened to work on."""
        directory = self._tree.directory(path)
        try:
            _make_node(entry, base, directory.descriptor)
        except FileExistsError:
            self._tree.remove(path, base)
            directory = self._tree.directory(path)
            _make_node(entry, base, directory.descriptor)
        here = directory.descriptor
        if entry.uid or entry.gid or directory.inherits:
            os.chown(base, entry.uid, entry.gid, dir_fd=here, follow_symlinks=False)
        if entry.xattrs is not None:
            with _working_in(here):
                _set_own_attributes(base, entry.xattrs)
        os.utime(base, ns=_times(entry.mtime), dir_fd=here, follow_symlinks=False)

    def _whiteout(self, path: bytes, base: bytes, entry: Entry) -> None:
        if base in (b"", b".", b".."):
            raise InvalidArgument(
                f"{shown(entry.name)} in the layer is a whiteout of its own directory or the one above"
            )
        self._tree.remove(path, base)
        if not self._overlay:
            return
        here = self._tree.directory(path).descriptor
        os.mknod(base, stat.S_IFCHR, 0, dir_fd=here)
        self._times.pop(path + b"/" + base if path else base, None)

    def _make_opaque(self, directory: Directory) -> None:
        if self._overlay:
            self._privileges.make_opaque(directory.descriptor)
            return
        if not self._spared(directory.descriptor, directory.inode):
            self._tree.forget()

    def _spared(self, descriptor: int, inode: int) -> bool:
        """Remove from a directory what this layer did not bring. Whether something is left."""
        with os.scandir(descriptor) as entries:
            found = [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
        left = False
        for name, is_directory in found:
            brought = (inode, name) in self._unpacked
            if is_directory:
                child = os.open(name, _DIRECTORY, dir_fd=descriptor)
                try:
                    brought |= self._spared(child, os.fstat(child).st_ino)
                finally:
                    os.close(child)
                if not brought:
                    os.rmdir(name, dir_fd=descriptor)
            elif not brought:
                os.unlink(name, dir_fd=descriptor)
            left |= brought
        return left

    def _implied(self, path: bytes, descriptor: int, covered: bool) -> None:
        if covered:
            self._privileges.make_opaque(descriptor)
        elif self._overlay:
            self.implied[path] = None
            self._privileges.inherit(descriptor, path)

    def _set_attributes(self, descriptor: int, attributes: list[tuple[bytes, bytes]]) -> None:
        for name, value in attributes:
            if name.startswith(_OVERLAY_ATTRIBUTES):
                continue
            try:
                if name.startswith(_PRIVILEGED) and name != b"security.capability":
                    self._privileges.set_attribute(descriptor, name, value)
                else:
                    os.setxattr(descriptor, name, value)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise

    def _set_times(self) -> None:
        for name, mtime in self._times.items():
            path, _, base = name.rpartition(b"/")
            try:
                here = self._tree.directory(path, make=False).descriptor
                os.utime(base, ns=_times(mtime), dir_fd=here, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                # A later entry took the directory away.
                continue


def cleaned(name: bytes) -> bytes:
    """The name relative to the root, without empty components, `.` and `..`; empty for the root itself."""
    if name.startswith(b"./"):
        name = name[2:]
    name = name.strip(b"/")
    if b"/." not in name and b"//" not in name and not name.startswith(b"."):
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _fill(descriptor: int, entry: Entry, reader: Reader) -> None:
    if entry.segments is None:
        while piece := reader.read(_PIECE):
            _write(descriptor, piece)
        return
    os.ftruncate(descriptor, entry.real_size)
    for offset, length in entry.segments:
        os.lseek(descriptor, offset, os.SEEK_SET)
        while length:
            piece = reader.read(min(length, _PIECE))
            _write(descriptor, piece)
            length -= len(piece)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


def _make_node(entry: Entry, base: bytes, here: int) -> None:
    if entry.kind == "2":
        os.symlink(entry.link, base, dir_fd=here)
    elif entry.kind == "6":
        os.mkfifo(base, entry.mode & 0o777, dir_fd=here)
    else:
        kind = stat.S_IFCHR if entry.kind == "3" else stat.S_IFBLK
        os.mknod(base, kind | entry.mode & 0o777, os.makedev(entry.major, entry.minor), dir_fd=here)


def _set_own_attributes(base: bytes, attributes: list[tuple[bytes, bytes]]) -> None:
    for name, value in attributes:
        if not name.startswith(_OVERLAY_ATTRIBUTES):
            try:
                os.setxattr(base, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise


@contextlib.contextmanager
def _working_in(directory: int) -> Iterator[None]:
    """Attributes of links have no call that takes a directory's descriptor."""
    before = os.open(".", os.O_PATH | os.O_CLOEXEC)
    os.fchdir(directory)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _times(mtime: int) -> tuple[int, int]:
    # As containerd does with times that some file systems can't keep.
    bound = mtime if 0 <= mtime <= _MAX_TIME else 0
    return bound, bound


def _translated(error: OSError | ValueError | OverflowError, entry: Entry) -> Exception:
    where = f"{shown(entry.name)} in the layer"
    if not isinstance(error, OSError):
        return InvalidArgument(f"{where} can't be made: {error}")
    reason = (error.strerror or "").lower()
    if error.errno in _FULL:
        return ResourceExhausted(f"{where} can't be written: {reason}")
    if error.errno in {errno.EPERM, errno.EACCES, errno.EROFS}:
        return PermissionDenied(f"{where} can't be made: {reason}")
    if error.errno in {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
        return error
    return InvalidArgument(f"{where} can't be made: {reason}")
