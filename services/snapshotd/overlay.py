"""Driver overlayfs: each snapshot holds only what it changes, and the kernel lays the trees over one another."""

import logging
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from carina.errors import CarinaError, PermissionDenied
from carina.linux.filesystem import entries_have_types, filesystem_type, in_user_namespace, is_whiteout
from carina.linux.mount import mounted
from carina.linux.usage import measure
from carina.mount import Mount
from carina.snapshots import Kind
from snapshotd.drivers import GID_MAPPING, UID_MAPPING, Place, Unfit, bind, mapped_root, tree, tree_of
from snapshotd.records import Chain

_log = logging.getLogger(__name__)
_INDEX: Final = Path("/sys/module/overlay/parameters/index")
_FRESH_MODE: Final = 0o755
_SPECIAL: Final = ",:\\\n"


class Overlay:
    """`mount_options` are added to every overlay (not to bind mounts).

    With `slow_chown` a client may do without id-mapped mounts, and have a copy of each tree with other owners.
    """

    copies = False

    def __init__(self, mount_options: Sequence[str] = (), *, slow_chown: bool = False) -> None:
        self._options = tuple(mount_options)
        self._slow_chown = slow_chown
        self._remaps = False

    @property
    def capabilities(self) -> tuple[str, ...]:
        remapping = ("remap-ids",) if self._remaps else ()
        only = () if self._slow_chown else ("only-remap-ids",)
        return (*remapping, *only, "rebase")

    def check(self, directory: Path) -> None:
        if any(character in str(directory) for character in _SPECIAL):
            raise Unfit(f"directory {directory} can't hold overlays: its path has a comma, colon or backslash")
        self._options += _needed_options(self._options)
        with tempfile.TemporaryDirectory(prefix="new-check-", dir=directory) as scratch:
            lower, upper, work = (Path(scratch, name) for name in ("lower", "upper", "work"))
            for path in (lower, upper, work):
                path.mkdir()
            (lower / "directory").mkdir()
            (lower / "file").touch()
            if not entries_have_types(lower):
                raise Unfit(
                    f"the file system of {directory} doesn't tell types of directory entries (d_type), which overlayfs"
                    " needs: an xfs must be formatted with ftype=1"
                )
            self._try(lower, upper, work)
            self._remaps = _remaps_ids(lower)

    def _try(self, lower: Path, upper: Path, work: Path) -> None:
        """Remove and remake things in an overlay: it takes whiteouts and extended attributes."""
        options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}", *self._options)
        where = lower.parent.parent
        try:
            with mounted([Mount(type="overlay", source="overlay", options=options)], parent=lower.parent) as merged:
                (merged / "file").unlink()
                (merged / "directory").rmdir()
                (merged / "directory").mkdir()
        except PermissionDenied as error:
            _log.warning("overlays can't be tried on %s: %s", where, error)
            return
        except (CarinaError, OSError) as error:
            kind = filesystem_type(where)
            if kind == "overlay":
                raise Unfit(
                    f"directory {where} is on an overlay, and an overlay can't hold another one's changes:"
                    " set root_path to a directory on another file system"
                ) from error
            raise Unfit(f"the file system of {where} ({kind}) can't hold overlays: {error}") from error
        names = ("trusted.overlay.opaque", "user.overlay.opaque")
        if not is_whiteout(upper / "file") or not any(name in os.listxattr(upper / "directory") for name in names):
            raise Unfit(f"the file system of {where} can't hold overlays: it lost a mark of a removed file")

    def create(self, directory: Path, *, kind: Kind, parents: Sequence[Path], labels: Mapping[str, str]) -> None:
        upper = tree(directory)
        upper.mkdir()
        owner = mapped_root(labels)
        if parents:
            # The merged root shows the attributes of the uppermost.
            status = os.lstat(tree(parents[0]))
            owner = owner or (status.st_uid, status.st_gid)
            mode = stat.S_IMODE(status.st_mode)
        else:
            mode = _FRESH_MODE
        if owner is not None:
            os.lchown(upper, *owner)
        upper.chmod(mode)
        if kind is Kind.ACTIVE:
            work = directory / "work"
            work.mkdir()
            work.chmod(0o711)

    def rebase(self, directory: Path, parent: Path, labels: Mapping[str, str]) -> None:
        """A root that is as it was made takes the attributes of the parent's, as it would have done in `create`.

        Whether a layer asked for just those attributes can't be told any more.
        """
        status = os.lstat(tree(directory))
        fresh = (*(mapped_root(labels) or (0, 0)), _FRESH_MODE)
        if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) != fresh:
            return
        below = os.lstat(tree(parent))
        if mapped_root(labels) is None:
            os.lchown(tree(directory), below.st_uid, below.st_gid)
        tree(directory).chmod(stat.S_IMODE(below.st_mode))

    def mounts(self, chain: Chain, place: Place) -> list[Mount]:
        own = tree_of(place, chain.id)
        writable = chain.kind is Kind.ACTIVE
        if not chain.parents:
            # Its files have the mapped owners already: mapped again, they would be nobody's.
            return bind(own, writable=writable)
        options = self._mapping(chain.labels)
        if not writable and len(chain.parents) == 1:
            return bind(tree_of(place, chain.parents[0]), writable=False, mapping=options)
        if writable:
            options += [f"workdir={place(chain.id)}/work", f"upperdir={own}"]
        options.append("lowerdir=" + ":".join(tree_of(place, parent) for parent in chain.parents))
        return [Mount(type="overlay", source="overlay", options=(*options, *self._options))]

    def usage(self, directory: Path, parents: Sequence[Path]) -> tuple[int, int]:
        return measure(tree(directory))

    def free(self, directory: Path) -> None:
        """There is no quicker way."""

    def _mapping(self, labels: Mapping[str, str]) -> list[str]:
        if not self._remaps or mapped_root(labels) is None:
            return []
        return [f"uidmap={labels[UID_MAPPING]}", f"gidmap={labels[GID_MAPPING]}"]


def _remaps_ids(lower: Path) -> bool:
    """Whether an overlay can have `lower`, with mapped ids, as its layer."""
    other = lower.with_name("other")
    options = ("uidmap=0:1:1", "gidmap=0:1:1", f"lowerdir={lower}:{other}")
    try:
        other.mkdir()
        with mounted([Mount(type="overlay", source="overlay", options=options)], parent=lower.parent) as merged:
            return os.lstat(merged / "file").st_uid == 1
    except (CarinaError, OSError) as error:
        _log.info("overlays can't map ids here: %s", error)
        return False


def _needed_options(given: Sequence[str]) -> tuple[str, ...]:
    """What this system needs beside the given options."""
    keys = {option.partition("=")[0] for option in given}
    needed = []
    if "userxattr" not in keys and in_user_namespace():
        needed.append("userxattr")
    if "index" not in keys and _INDEX.exists():
        # With an index, a second mount of a lower tree in use would fail.
        needed.append("index=off")
    return tuple(needed)
