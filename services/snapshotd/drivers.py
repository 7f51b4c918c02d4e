"""What a driver is: the part of a snapshotter that knows how trees are laid out on disk.

    <directory of a snapshot>/fs      the tree, or what this snapshot changes on its parents
    <directory of a snapshot>/work    overlayfs's scratch space, of active snapshots

Every function but `mounts` blocks and is called in a thread.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from carina.errors import FailedPrecondition, InvalidArgument
from carina.linux import idmap
from carina.mount import Mount
from carina.snapshots import Kind
from snapshotd.records import Chain

_TREE: Final = "fs"
UID_MAPPING: Final = "containerd.io/snapshot/uidmapping"
GID_MAPPING: Final = "containerd.io/snapshot/gidmapping"


class Unfit(FailedPrecondition):
    """A machine or its file system lacks what a driver needs; the sentence says what."""


Place = Callable[[int], str]
"""From a snapshot's id to its directory: text, since a stack of hundreds is asked for at each mount."""


class Driver(Protocol):
    """One way to keep trees."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """containerd's words for what it can; complete after `check`.

        `rebase`: a parent may be named at commit. `remap-ids`: labels map ids, without a copy of the tree.
        `only-remap-ids`: a client may not have trees copied and their owners changed instead.
        """

    @property
    def copies(self) -> bool:
        """Whether a new snapshot has its own copy of its parents' bytes, which must get to the disk as well."""

    def check(self, directory: Path) -> None:
        """Try on the file system of `directory` what the driver needs of it.

        Raises:
            Unfit: it can't be used there.
        """

    def create(self, directory: Path, *, kind: Kind, parents: Sequence[Path], labels: Mapping[str, str]) -> None:
        """Fill the directory of a new snapshot. The same work is undone by removing the directory."""

    def rebase(self, directory: Path, parent: Path, labels: Mapping[str, str]) -> None:
        """Make a snapshot that was created with `labels` and without parent look as if created on `parent`. Repeatable.

        Raises:
            InvalidArgument: the driver can't.
        """

    def mounts(self, chain: Chain, place: Place) -> list[Mount]:
        """The mounts of a snapshot that is not committed."""

    def usage(self, directory: Path, parents: Sequence[Path]) -> tuple[int, int]:
        """Bytes and inodes that a snapshot takes itself.

        Raises:
            CarinaError: it can't be read.
        """

    def free(self, directory: Path) -> None:
        """Begin to free the directory of a removed snapshot; what is left of it is removed file by file."""


def tree(directory: Path) -> Path:
    return directory / _TREE


def tree_of(place: Place, number: int) -> str:
    return f"{place(number)}/{_TREE}"


def bind(source: str, *, writable: bool, mapping: Sequence[str] = ()) -> list[Mount]:
    return [Mount(type="bind", source=source, options=(*mapping, "rw" if writable else "ro", "rbind"))]


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """Owner of a tree whose labels map ids (`container id:host id:count[,...]`): where the container's root is mapped.

    Raises:
        InvalidArgument: a label is no mapping, or has no place for root.
    """
    if UID_MAPPING not in labels and GID_MAPPING not in labels:
        return None
    return _host_root(labels, UID_MAPPING), _host_root(labels, GID_MAPPING)


def _host_root(labels: Mapping[str, str], name: str) -> int:
    try:
        ranges = idmap.parse(labels.get(name, ""))
    except InvalidArgument as error:
        raise InvalidArgument(f"label {name}: {error}") from error
    for inside, outside, _ in ranges:
        if inside == 0:
            return outside
    raise InvalidArgument(f"label {name}: {labels[name][:80]!r} does not map root")
