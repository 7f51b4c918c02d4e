"""The changes that lead from one tree to another, in the order of their paths.

Both trees are walked through descriptors; a symbolic link is looked at and never followed.
Where a third directory names everything that can have changed (an overlay's upper directory, see `upperdir.py`),
the walk looks at these names only, and finds the same.
A file counts as unchanged if its metadata, size and time are the same;
where a time has no fraction of a second, as after unpacking, the bytes are compared as well.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from carina.errors import InvalidArgument
from carina.layer.tar import shown
from carina.layer.tree import is_whiteout

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PIECE: Final = 1 << 20
_SECOND: Final = 1_000_000_000
_MAX_DEPTH: Final = 800

Inode = tuple[int, int]
Names = dict[bytes, os.stat_result]


class Change(NamedTuple):
    """One entry of the layer to be. `directory` and `name` lead to it, until the next change is asked for."""

    path: bytes
    status: os.stat_result | None
    """None: removed."""
    directory: int
    name: bytes
    link: bytes | None = None
    """The path that came earlier for the same file."""


def changes(
    lower: int | None, upper: int, *, only: int | None = None, opaque: frozenset[bytes] = frozenset()
) -> Iterator[Change]:
    """What `upper` changes on `lower`, the descriptors of two directories; everything if there is no `lower`.

    `only` is a directory that has, at its path, whatever may differ, in whatever form; below the paths in `opaque`
    anything may.
    """
    return _Walk(opaque).directory(_Trees(lower, upper, only), path=b"", parents=[])


class _Trees(NamedTuple):
    """Descriptors of one directory in each tree."""

    lower: int | None
    upper: int
    only: int | None
    """None: every name is looked at."""

    def names(self) -> tuple[Names, Names]:
        """What is in `lower` and in `upper`."""
        if self.only is None:
            return _names(self.lower) if self.lower is not None else {}, _names(self.upper)
        assert self.lower is not None
        names = os.listdir(self.only)
        return _names(self.lower, among=names), _names(self.upper, among=names)


class _Walk:
    def __init__(self, opaque: frozenset[bytes]) -> None:
        self._opaque = opaque
        self._written: dict[Inode, bytes] = {}
        self._unchanged: dict[Inode, list[bytes]] = {}

    def directory(self, trees: _Trees, *, path: bytes, parents: list[Change]) -> Iterator[Change]:
        """`parents` are directories on the way here that are not written yet: they are, before the first change."""
        if path.count(b"/") > _MAX_DEPTH:
            raise InvalidArgument(f"{shown(path)} is too deep a directory for a layer")
        lower, upper, _ = trees
        old, new = trees.names()
        for name in sorted(old.keys() | new.keys()):
            here = path + b"/" + name if path else name
            status, before = new.get(name), old.get(name)
            if status is None:
                yield from _with(parents, Change(here, None, upper, name))
                continue
            if stat.S_ISSOCK(status.st_mode):
                continue
            if name.startswith(b".wh."):
                raise InvalidArgument(f"{shown(here)} can't be in a layer: its name is that of a whiteout")
            change = Change(here, status, upper, name)
            if stat.S_ISDIR(status.st_mode):
                yield from self._subdirectory(trees, change, before=before, parents=parents)
            elif lower is None or before is None or _differ(lower, upper, name, before=before, after=status):
                yield from _with(parents, *self._file(change))
            elif status.st_nlink > 1:
                yield from self._unchanged_link(change, parents)

    def _subdirectory(
        self, trees: _Trees, change: Change, *, before: os.stat_result | None, parents: list[Change]
    ) -> Iterator[Change]:
        lower, name = trees.lower, change.name
        assert change.status is not None
        if before is not None and os.path.samestat(before, change.status):
            return
        both = lower is not None and before is not None and stat.S_ISDIR(before.st_mode)
        below = [*parents, change]
        if not both or _metadata(lower, name, before) != _metadata(change.directory, name, change.status):
            yield from _with(parents, change)
            below = []
        told = both and change.path not in self._opaque
        with contextlib.ExitStack() as stack:
            opened = _Trees(
                lower=_opened(stack, lower, name) if lower is not None and both else None,
                upper=_opened(stack, trees.upper, name),
                only=None if trees.only is None or not told else _opened(stack, trees.only, name),
            )
            yield from self.directory(opened, path=change.path, parents=below)
        if not below:
            # Something below was written, and with it every directory on the way.
            parents.clear()

    def _file(self, change: Change) -> Iterator[Change]:
        assert change.status is not None
        if change.status.st_nlink < 2:
            yield change
            return
        inode = (change.status.st_dev, change.status.st_ino)
        first = self._written.setdefault(inode, change.path)
        if first != change.path:
            yield change._replace(link=first)
            return
        yield change
        # The file has names that did not change. As links to the new one they stay links.
        for path in self._unchanged.pop(inode, []):
            yield Change(path, change.status, change.directory, change.name, change.path)

    def _unchanged_link(self, change: Change, parents: list[Change]) -> Iterator[Change]:
        assert change.status is not None
        inode = (change.status.st_dev, change.status.st_ino)
        first = self._written.get(inode)
        if first is not None:
            yield from _with(parents, change._replace(link=first))
        else:
            self._unchanged.setdefault(inode, []).append(change.path)


def _with(parents: list[Change], *found: Change) -> Iterator[Change]:
    yield from parents
    parents.clear()
    yield from found


def _opened(stack: contextlib.ExitStack, directory: int, name: bytes) -> int:
    descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
    stack.callback(os.close, descriptor)
    return descriptor


def _names(directory: int, *, among: Iterable[str] | None = None) -> Names:
    """What is in the directory. A whiteout is nothing: a lone layer, which nobody lays over another, may have some."""
    found: Names = {}
    for name in os.listdir(directory) if among is None else among:
        try:
            status = os.lstat(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        if not is_whiteout(status):
            found[os.fsencode(name)] = status
    return found


def attributes(directory: int, name: bytes) -> dict[bytes, bytes]:
    """The extended attributes that belong into a layer."""
    path = b"/proc/self/fd/%d/%b" % (directory, name)
    found = {}
    for key in os.listxattr(path, follow_symlinks=False):
        if key == "security.capability" or (key.startswith("user.") and not key.startswith("user.overlay.")):
            found[os.fsencode(key)] = os.getxattr(path, key, follow_symlinks=False)
    return found


def _metadata(directory: int | None, name: bytes, status: os.stat_result | None) -> tuple[object, ...]:
    assert directory is not None
    assert status is not None
    return status.st_mode, status.st_uid, status.st_gid, status.st_rdev, attributes(directory, name)


def _differ(lower: int, upper: int, name: bytes, *, before: os.stat_result, after: os.stat_result) -> bool:
    if os.path.samestat(before, after):
        return False
    if (before.st_mode, before.st_size) != (after.st_mode, after.st_size):
        return True
    if before.st_mtime_ns != after.st_mtime_ns:
        whole = before.st_mtime_ns % _SECOND == 0 or after.st_mtime_ns % _SECOND == 0
        if not whole or before.st_mtime_ns // _SECOND != after.st_mtime_ns // _SECOND:
            return True
    if _metadata(lower, name, before) != _metadata(upper, name, after):
        return True
    if stat.S_ISLNK(after.st_mode):
        return os.readlink(name, dir_fd=lower) != os.readlink(name, dir_fd=upper)
    if stat.S_ISREG(after.st_mode) and after.st_mtime_ns % _SECOND == 0:
        return not _same_bytes(lower, upper, name)
    return False


def _same_bytes(lower: int, upper: int, name: bytes) -> bool:
    with (
        open(os.open(name, _FILE, dir_fd=lower), "rb", buffering=0) as old,
        open(os.open(name, _FILE, dir_fd=upper), "rb", buffering=0) as new,
    ):
        while True:
            piece = old.read(_PIECE)
            if piece != new.read(_PIECE):
                return False
            if not piece:
                return True
