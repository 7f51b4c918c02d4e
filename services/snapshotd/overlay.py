"""Driver overlayfs: each snapshot holds only what it changes, and the kernel lays the trees over one another."""

import logging
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from carina.errors import CarinaError, FailedPrecondition, PermissionDenied
from carina.linux.filesystem import entries_have_types, in_user_namespace, is_whiteout
from carina.linux.mount import mounted
from carina.mount import Mount
from carina.snapshots import Kind
from snapshotd.drivers import Place, bind, mapped_root, tree
from snapshotd.records import Chain

_log = logging.getLogger(__name__)
_INDEX: Final = Path("/sys/module/overlay/parameters/index")
_FRESH_MODE: Final = 0o755
_SPECIAL: Final = ",:\\\n"


class Overlay:
    """`mount_options` are added to every overlay (not to bind mounts)."""

    capabilities = ("rebase",)

    def __init__(self, mount_options: Sequence[str] = ()) -> None:
        self._options = tuple(mount_options)

    def check(self, directory: Path) -> None:
        if any(character in str(directory) for character in _SPECIAL):
            raise FailedPrecondition(
                f"directory {directory} can't hold overlays: its path has a comma, colon or backslash"
            )
        self._options += _needed_options(self._options)
        with tempfile.TemporaryDirectory(prefix="new-check-", dir=directory) as scratch:
            lower, upper, work = (Path(scratch, name) for name in ("lower", "upper", "work"))
            for path in (lower, upper, work):
                path.mkdir()
            (lower / "directory").mkdir()
            (lower / "file").touch()
            if not entries_have_types(lower):
                raise FailedPrecondition(
                    f"the file system of {directory} doesn't tell types of directory entries (d_type), which overlayfs"
                    " needs: an xfs must be formatted with ftype=1"
                )
            self._try(lower, upper, work)

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
            raise FailedPrecondition(f"the file system of {where} can't hold overlays: {error}") from error
        names = ("trusted.overlay.opaque", "user.overlay.opaque")
        if not is_whiteout(upper / "file") or not any(name in os.listxattr(upper / "directory") for name in names):
            raise FailedPrecondition(
                f"the file system of {where} can't hold overlays: it lost a mark of a removed file"
            )

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
        own = place(chain.id)
        writable = chain.kind is Kind.ACTIVE
        if not chain.parents:
            return bind(tree(own), writable=writable)
        if not writable and len(chain.parents) == 1:
            return bind(tree(place(chain.parents[0])), writable=False)
        options = [f"workdir={own / 'work'}", f"upperdir={tree(own)}"] if writable else []
        options.append("lowerdir=" + ":".join(str(tree(place(parent))) for parent in chain.parents))
        return [Mount(type="overlay", source="overlay", options=(*options, *self._options))]


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
