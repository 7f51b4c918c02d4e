"""A tree that entries are put into, seen through descriptors of its directories only.

Path strings are resolved by the kernel, inside the root, each time a directory is opened;
descriptors are kept for directories only as long as nothing in the tree was replaced or removed.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from carina.errors import InvalidArgument
from carina.layer.tar import shown
from carina.linux.openat2 import open_in_root

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INSIDE: Final = _DIRECTORY | os.O_NOFOLLOW
_MAX_OPEN: Final = 64
_MAX_LINKS: Final = 40
_MAX_DEPTH: Final = 64


class Directory(NamedTuple):
    descriptor: int
    inode: int
    inherits: bool
    """Whether what is made in it gets a group or mode from it: it has the set-group-ID bit or a default ACL."""


class Tree:
    """The tree below the directory that the descriptor `root` is open on."""

    def __init__(self, root: int, *, made: Callable[[bytes, int, bool], None]) -> None:
        self._root = root
        self._made = made
        """Called for each directory that is made because an entry needs it: its path, a descriptor, and whether it
        replaces a whiteout."""
        self._open: dict[bytes, Directory] = {}

    def forget(self) -> None:
        """Something was replaced or removed: no path leads surely where it did."""
        for directory in self._open.values():
            os.close(directory.descriptor)
        self._open.clear()

    def directory(self, path: bytes, *, make: bool = True) -> Directory:
        """The directory at `path`, symbolic links followed inside the root; made where it is missing.

        Raises:
            InvalidArgument: something else than a directory is in the way.
            OSError: (not to `make`) it is missing.
        """
        found = self._open.get(path)
        if found is not None:
            return found
        try:
            descriptor = open_in_root(self._root, path or b".", _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            descriptor = self._slowly(path, make=make)
        if len(self._open) >= _MAX_OPEN:
            oldest = next(iter(self._open))
            os.close(self._open.pop(oldest).descriptor)
        status = os.fstat(descriptor)
        inherits = bool(status.st_mode & stat.S_ISGID) or _has_default_acl(descriptor)
        self._open[path] = directory = Directory(descriptor, status.st_ino, inherits)
        return directory

    def remove(self, path: bytes, name: bytes) -> os.stat_result | None:
        """Remove whatever `name` is in the directory at `path`, with all that is below. Returns what it was.

        Descriptors that `directory` returned before may be closed afterwards.
        """
        descriptor = self.directory(path).descriptor
        try:
            status = os.lstat(name, dir_fd=descriptor)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            remove_tree(descriptor, name)
        else:
            os.unlink(name, dir_fd=descriptor)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            self.forget()
        return status

    def _slowly(self, path: bytes, *, make: bool) -> int:
        """Open `path` component by component, and make what is missing.

        Unlike the kernel it lets a missing component be left again by `..`, as other appliers do.
        """
        parts = self._resolved(path)
        if make:
            for count in range(len(parts)):
                here = open_in_root(self._root, b"/".join(parts[:count]) or b".", _DIRECTORY)
                try:
                    self._step(here, parts[count], path=b"/".join(parts[: count + 1]))
                finally:
                    os.close(here)
        return open_in_root(self._root, b"/".join(parts) or b".", _DIRECTORY)

    def _resolved(self, path: bytes) -> list[bytes]:
        """The components of `path` once symbolic links and `..` are followed."""
        pending = path.split(b"/")[::-1]
        parts: list[bytes] = []
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del parts[-1:]
                continue
            target = self._link(parts, name)
            if target is None:
                parts.append(name)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise InvalidArgument(f"{shown(path)} in the layer leads through too many symbolic links")
            if target.startswith(b"/"):
                parts.clear()
            pending.extend(target.split(b"/")[::-1])
        return parts

    def _link(self, parts: list[bytes], name: bytes) -> bytes | None:
        """Where the symbolic link `name` leads; None if it is none, or missing."""
        try:
            here = open_in_root(self._root, b"/".join(parts) or b".", _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.readlink(name, dir_fd=here)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise
        finally:
            os.close(here)

    def _step(self, here: int, name: bytes, *, path: bytes) -> None:
        """Make sure that `name` is a directory."""
        covered = False
        try:
            status = os.lstat(name, dir_fd=here)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(status.st_mode):
                return
            if not is_whiteout(status):
                raise InvalidArgument(f"{shown(path)} in the layer is no directory, and has something below it")
            os.unlink(name, dir_fd=here)
            covered = True
        os.mkdir(name, 0o755, dir_fd=here)
        descriptor = os.open(name, _INSIDE, dir_fd=here)
        try:
            self._made(path, descriptor, covered)
        finally:
            os.close(descriptor)


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def remove_tree(directory: int, name: bytes) -> None:
    """Remove the directory `name` in `directory` and all below it, however deep, never following a link."""
    top = os.open(name, _INSIDE, dir_fd=directory)
    try:
        moved = 0
        while True:
            deep = _empty(top, top, depth=0, moved=moved)
            if deep == moved:
                break
            moved = deep
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=directory)


def _empty(top: int, directory: int, *, depth: int, moved: int) -> int:
    """Remove what is in `directory`; what is too deep goes up to `top`, for another round. Counts those ever moved."""
    with os.scandir(directory) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
        elif depth >= _MAX_DEPTH:
            moved += 1
            os.rename(name, b".carina-removed-%d-%d" % (os.getpid(), moved), src_dir_fd=directory, dst_dir_fd=top)
        else:
            child = os.open(name, _INSIDE, dir_fd=directory)
            try:
                moved = _empty(top, child, depth=depth + 1, moved=moved)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=directory)
    return moved


def _has_default_acl(descriptor: int) -> bool:
    try:
        os.getxattr(descriptor, b"system.posix_acl_default")
    except OSError:
        return False
    return True
