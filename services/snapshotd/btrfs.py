"""Driver btrfs: each active snapshot is a subvolume, made as a snapshot of its parent's. Nothing is copied.

A view needs no subvolume: it is its parent's tree, mounted read-only.
"""

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from carina.errors import InvalidArgument
from carina.linux import btrfs
from carina.linux.errnos import translated
from carina.linux.filesystem import filesystem_type, sync_filesystem
from carina.mount import Mount
from carina.snapshots import Kind
from snapshotd.drivers import Place, Unfit, bind, mapped_root, tree, tree_of
from snapshotd.records import Chain

_log = logging.getLogger(__name__)


class Btrfs:
    capabilities: tuple[str, ...] = ()
    copies = False

    def check(self, directory: Path) -> None:
        kind = filesystem_type(directory)
        if kind != "btrfs":
            raise Unfit(f"directory {directory} is on {kind}, and subvolumes need btrfs: skip plugin")
        with tempfile.TemporaryDirectory(prefix="new-check-", dir=directory) as scratch:
            try:
                btrfs.create_subvolume(tree(Path(scratch)))
                btrfs.destroy_subvolume(tree(Path(scratch)))
            except OSError as error:
                raise Unfit(f"subvolumes can't be made and removed in {directory}: {error.strerror}") from error

    def create(self, directory: Path, *, kind: Kind, parents: Sequence[Path], labels: Mapping[str, str]) -> None:
        top = tree(directory)
        if kind is not Kind.ACTIVE:
            top.mkdir()
        elif parents:
            btrfs.create_snapshot(tree(parents[0]), top)
        else:
            btrfs.create_subvolume(top)
        if kind is not Kind.ACTIVE or not parents:
            top.chmod(0o755)
        owner = mapped_root(labels)
        if owner is not None:
            os.lchown(top, *owner)

    def rebase(self, directory: Path, parent: Path, labels: Mapping[str, str]) -> None:
        raise InvalidArgument("a subvolume is a snapshot of its parent: it can't have another")

    def mounts(self, chain: Chain, place: Place) -> list[Mount]:
        writable = chain.kind is Kind.ACTIVE
        source = chain.id if writable or not chain.parents else chain.parents[0]
        return bind(tree_of(place, source), writable=writable)

    def usage(self, directory: Path, parents: Sequence[Path]) -> tuple[int, int]:
        """Inodes that differ from the parent's, and bytes that are not shared with it."""
        below = str(tree(parents[0])) if parents else None
        try:
            sync_filesystem(directory)
            size = inodes = 0
            seen: set[tuple[int, int]] = set()
            for path, status in _changed(str(tree(directory)), below):
                if (identity := (status.st_dev, status.st_ino)) in seen:
                    continue
                seen.add(identity)
                inodes += 1
                if stat.S_ISREG(status.st_mode):
                    with contextlib.suppress(FileNotFoundError):  # a container at work
                        size += btrfs.exclusive_bytes(path)
        except OSError as error:
            raise translated(error, f"measuring {directory}") from error
        return size, inodes

    def free(self, directory: Path) -> None:
        top = tree(directory)
        try:
            if btrfs.is_subvolume(top):
                btrfs.destroy_subvolume(top)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.info("subvolume %s is emptied file by file: %s", top, error.strerror)


def _changed(top: str, below: str | None) -> Iterator[tuple[str, os.stat_result]]:
    """Entries of a tree, its top included, that are not just as in the tree `below`, of which it was a snapshot.

    A snapshot keeps inode numbers and times of changes, which nobody can set.
    """
    pending = [""]
    yield from _if_changed(top, below, os.lstat(top))
    while pending:
        directory = pending.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(top + directory) as entries:
            for entry in entries:
                relative = f"{directory}/{entry.name}"
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(relative)
                yield from _if_changed(top + relative, None if below is None else below + relative, status)


def _if_changed(path: str, former: str | None, status: os.stat_result) -> Iterator[tuple[str, os.stat_result]]:
    if former is not None:
        with contextlib.suppress(OSError):
            old = os.lstat(former)
            if (old.st_ino, old.st_ctime_ns, old.st_size) == (status.st_ino, status.st_ctime_ns, status.st_size):
                return
    yield path, status
