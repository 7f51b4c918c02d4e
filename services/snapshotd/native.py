"""Driver native: each active snapshot is a full copy of its parent's tree. For file systems without overlays.

The copy keeps modes, owners, times, extended attributes, hard links, devices and holes,
and shares blocks with the original where the file system can.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from carina.errors import InvalidArgument
from carina.linux.errnos import translated
from carina.linux.filesystem import copy_data
from carina.linux.usage import measure
from carina.mount import Mount
from carina.snapshots import Kind
from snapshotd.drivers import Place, bind, mapped_root, tree, tree_of
from snapshotd.records import Chain


class Native:
    capabilities: tuple[str, ...] = ()
    copies = True

    def check(self, directory: Path) -> None:
        """Any file system will do."""

    def create(self, directory: Path, *, kind: Kind, parents: Sequence[Path], labels: Mapping[str, str]) -> None:
        top = tree(directory)
        top.mkdir()
        top.chmod(0o755)
        if parents and kind is Kind.ACTIVE:
            copy_tree(tree(parents[0]), top)
        owner = mapped_root(labels)
        if owner is not None:
            os.lchown(top, *owner)

    def rebase(self, directory: Path, parent: Path, labels: Mapping[str, str]) -> None:
        raise InvalidArgument("a tree of the native snapshotter was copied from its parent: it can't have another")

    def mounts(self, chain: Chain, place: Place) -> list[Mount]:
        writable = chain.kind is Kind.ACTIVE
        source = chain.id if writable or not chain.parents else chain.parents[0]
        return bind(tree_of(place, source), writable=writable)

    def usage(self, directory: Path, parents: Sequence[Path]) -> tuple[int, int]:
        return measure(tree(directory))

    def free(self, directory: Path) -> None:
        """There is no quicker way."""


def copy_tree(source: Path, target: Path) -> None:
    """Copy what is in `source`, and its own attributes, into the empty directory `target`.

    Raises:
        CarinaError: an entry can't be read or written; the sentence names it.
    """
    links: dict[tuple[int, int], str] = {}
    directories = [(str(source), str(target))]
    made: list[tuple[str, str]] = []
    while directories:
        origin, copy = directories.pop()
        made.append((origin, copy))
        try:
            with os.scandir(origin) as entries:
                for entry in entries:
                    path = os.path.join(copy, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        os.mkdir(path, 0o700)
                        directories.append((entry.path, path))
                    else:
                        _copy_entry(entry, path, links)
        except OSError as error:
            raise translated(error, f"copying {origin}") from error
    # Entries made in a directory change its times, so that they are set last.
    for origin, copy in reversed(made):
        _copy_attributes(origin, copy, os.lstat(origin))


def _copy_entry(entry: os.DirEntry[str], path: str, links: dict[tuple[int, int], str]) -> None:
    status = entry.stat(follow_symlinks=False)
    identity = (status.st_dev, status.st_ino)
    if status.st_nlink > 1:
        if (first := links.get(identity)) is not None:
            os.link(first, path, follow_symlinks=False)
            return
        links[identity] = path
    if stat.S_ISREG(status.st_mode):
        _copy_file(entry.path, path)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(entry.path), path)
    else:
        os.mknod(path, status.st_mode, status.st_rdev)
    _copy_attributes(entry.path, path, status)


def _copy_file(origin: str, path: str) -> None:
    source = os.open(origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_data(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_attributes(origin: str, path: str, status: os.stat_result) -> None:
    """Owner first: changing it drops set-id bits and capabilities."""
    os.lchown(path, status.st_uid, status.st_gid)
    for name in os.listxattr(origin, follow_symlinks=False):
        os.setxattr(path, name, os.getxattr(origin, name, follow_symlinks=False), follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
