"""Performing mounts: mount(2), umount2(2), and overlays with more layers than fit a page of options.

Everything here blocks: call it in a thread.
"""

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from carina.errors import CarinaError, FailedPrecondition, Unimplemented
from carina.linux import fsmount, idmap, mount_options
from carina.linux.errnos import translated
from carina.linux.libc import call
from carina.linux.openat2 import open_in_root
from carina.mount import Mount

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_CLONE_NEWNS: Final = 0x00020000
_PAGE: Final = 4096
_KEPT: Final = (
    mount_options.NOSUID | mount_options.NODEV | mount_options.NOEXEC | mount_options.NOATIME | mount_options.NODIRATIME
)
"""Flags that statvfs(3) tells with the values of mount(2), and that a remount would lose."""
_BIND_FLAGS: Final = mount_options.BIND | mount_options.REC | mount_options.REMOUNT
_BUSY_SECONDS: Final = 1.0


def mount_all(mounts: Sequence[Mount], target: str | Path) -> None:
    """Perform `mounts` one over the other on the directory `target`. If one fails, those before it are undone.

    Raises:
        NotFound: a source, a layer or the target does not exist.
        InvalidArgument: the kernel refuses the options.
        PermissionDenied: the process may not mount.
        FailedPrecondition: the kernel does not know the file system type, or something is in use.
    """
    done = 0
    try:
        for mount in mounts:
            _perform(mount, target)
            done += 1
    except BaseException:
        with contextlib.suppress(CarinaError):
            _undo(mounts[:done], target, detach=True)
        raise


def _perform(mount: Mount, target: str | Path) -> None:
    options = mount_options.parse(mount.options)
    try:
        with _place(mount, target) as place:
            if options.uid_map:
                _make_mapped(mount, place, options)
            else:
                _make(mount, place, options)
        try:
            _finish(mount, target, options)
        except BaseException:
            _undo([mount], target, detach=True)
            raise
    except OSError as error:
        raise translated(error, f"mounting {_described(mount)} on {_shown(mount, target)}") from error


def _make(mount: Mount, place: str, options: mount_options.Options) -> None:
    if mount.type == "overlay" and fsmount.needed(options, page=_PAGE):
        fsmount.overlay(mount.source, options, place)
        return
    # With bind mount(2) heeds no other flag than `rec`: the rest takes a second call.
    first = options.flags & (_BIND_FLAGS if options.is_bind else ~0)
    _mount(mount.source, place, mount.type, flags=first, data=options.text)


def _make_mapped(mount: Mount, place: str, options: mount_options.Options) -> None:
    with idmap.user_namespace(options.uid_map, options.gid_map) as namespace:
        if mount.type == "overlay":
            layers = fsmount.lower_layers(options)
            with idmap.mapped_layers(options, layers, namespace=namespace) as mapped:
                _make(mount, place, mapped)
        elif options.is_bind:
            recursive = bool(options.flags & mount_options.REC)
            idmap.bind(mount.source, place, namespace=namespace, recursive=recursive)
        else:
            raise Unimplemented(f"an id-mapped mount of a {mount.type}: not built")


def _finish(mount: Mount, target: str | Path, options: mount_options.Options) -> None:
    flags = options.flags & ~mount_options.REC
    # Opened anew: the place now leads to what is mounted there.
    with _place(mount, target) as place:
        if options.is_bind and flags not in (mount_options.BIND, mount_options.BIND | mount_options.REMOUNT):
            inherited = os.statvfs(place).f_flag & _KEPT
            _mount("", place, "", flags=flags | inherited | mount_options.REMOUNT)
        if options.propagation:
            _mount("", place, "", flags=options.propagation)


def unmount(target: str | Path, *, detach: bool = False) -> bool:
    """Unmount what is mounted last on `target`; False if it is no mount point.

    With `detach` a mount in use disappears from the tree now and ends when its last user does.

    Raises:
        FailedPrecondition: the mount is in use.
        NotFound: no such path.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)
    try:
        call("umount2", os.fsencode(target), flags)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise translated(error, f"unmounting {target}") from error
    return True


def unmount_all(target: str | Path, *, detach: bool = False) -> int:
    """Unmount everything stacked on `target`, the last first. Returns how many mounts that were."""
    count = 0
    while unmount(target, detach=detach):
        count += 1
    return count


def unmount_beneath(directory: str | Path) -> int:
    """Detach every mount on or below `directory`, the deepest first. Returns how many."""
    prefix = os.path.realpath(directory)
    found = [point for point in mount_points() if point == prefix or point.startswith(prefix + "/")]
    return sum(unmount(point, detach=True) for point in reversed(found))


def mount_points() -> list[str]:
    """Every mount point that the process sees, in the order they were made."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return [os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1")) for line in lines]


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], *, parent: str | Path | None = None) -> Iterator[Path]:
    """The tree of `mounts`, on a temporary directory (below `parent`) for the time of the block.

    Overlays are mounted without `volatile`: Linux refuses to mount again what was mounted with it once.
    """
    mounts = [replace(mount, options=tuple(o for o in mount.options if o != "volatile")) for mount in mounts]
    directory = Path(tempfile.mkdtemp(prefix="carina-mount-", dir=parent))
    try:
        mount_all(mounts, directory)
        try:
            yield directory
        finally:
            _undo_patiently(mounts, directory)
    finally:
        # rmdir, never a recursive removal: should a mount remain, its files must.
        directory.rmdir()


def unshare_mounts() -> None:
    """Give the calling thread, and processes it starts, mounts of its own that the rest of the system doesn't see."""
    try:
        call("unshare", _CLONE_NEWNS)
        _mount("", "/", "", flags=mount_options.REC | mount_options.PRIVATE)
    except OSError as error:
        raise translated(error, "leaving the shared mount namespace") from error


def format_mount_command(mount: Mount, target: str | Path) -> str:
    """The shell command that performs a mount, as `ctr snapshots mounts` prints it."""
    return f"mount -t {mount.type} {mount.source} {_shown(mount, target)} -o {','.join(mount.options)}"


def _mount(source: str, target: str, kind: str, *, flags: int, data: str = "") -> None:
    call("mount", os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, os.fsencode(data) or None)


@contextlib.contextmanager
def _place(mount: Mount, target: str | Path) -> Iterator[str]:
    """Where to mount: below `target`, which no `..` or symbolic link in the mount's sub-path can leave."""
    if not mount.target:
        yield str(target)
        return
    try:
        root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, f"mount target {target}") from error
    try:
        descriptor = open_in_root(root, os.fsencode(mount.target), os.O_PATH)
    except OSError as error:
        raise translated(error, f"mount target {mount.target} in {target}") from error
    finally:
        os.close(root)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _undo(mounts: Sequence[Mount], target: str | Path, *, detach: bool) -> None:
    for mount in reversed(mounts):
        with _place(mount, target) as place:
            # Through a magic link the mount itself is named, so that following it is safe and needed.
            unmount(os.path.realpath(place) if mount.target else place, detach=detach)


def _undo_patiently(mounts: Sequence[Mount], target: Path) -> None:
    """Somebody else's process (an indexer, a fork between open and exec) may hold the tree for an instant."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            _undo(mounts, target, detach=False)
        except FailedPrecondition:
            if time.monotonic() > end:
                unmount_beneath(target)
                return
            time.sleep(0.02)
        else:
            return


def _described(mount: Mount) -> str:
    layers = sum(option.count(":") + 1 for option in mount.options if option.startswith("lowerdir="))
    return f"{mount.type} of {layers} layers" if layers else f"{mount.type} {mount.source}"


def _shown(mount: Mount, target: str | Path) -> str:
    return os.path.join(target, mount.target.lstrip("/")) if mount.target else str(target)
