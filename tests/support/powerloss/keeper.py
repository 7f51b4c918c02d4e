"""The process that holds a recorded disk: FUSE server, loop device and mounts. All of it is gone when it ends.

    <directory>/lock      locked while the keeper lives
    <directory>/base      the disk as it was made, before anything was recorded
    <directory>/live      the disk as it is
    <directory>/record    everything that happened since
    <directory>/disk      `live` through FUSE, under the loop device
    <directory>/mnt       the file system

It is asked by lines of JSON on its input, and cleans up when that ends, which it does when the test process is killed.
What a keeper leaves that was killed itself is cleaned up by the next one.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from support.powerloss import fuse
from support.powerloss.record import Recorder, copy_sparse

PREFIX: Final = "carina-power-"
MAKERS: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}
_PATIENCE: Final = 10.0


def main(directory: Path, size: int, kind: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of the input is what ends it
    clean_abandoned(directory.parent)
    lock = _lock(directory)
    try:
        _open(directory, size, kind)
        print("ok", flush=True)
        loops: dict[str, str] = {}
        for line in sys.stdin:
            print(_answer(json.loads(line), loops), flush=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the disk can't be made: {error} {getattr(error, 'stderr', '')!r}", flush=True)
    finally:
        clean(directory)
        os.close(lock)


def _lock(directory: Path) -> int:
    """The file has its name only once it is locked: another keeper takes a lock that it gets for an abandoned one."""
    lock = os.open(directory / "lock.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(directory / "lock.new", directory / "lock")
    return lock


def _open(directory: Path, size: int, kind: str) -> None:
    base, live, disk, target = (directory / name for name in ("base", "live", "disk", "mnt"))
    with base.open("wb") as file:
        file.truncate(size)
    _run(*MAKERS[kind], str(base))
    copy_sparse(base, live)
    disk.touch()
    target.mkdir()
    device = fuse.mount(str(disk))
    recorder = Recorder(live, directory / "record")
    threading.Thread(target=fuse.serve, args=(device, recorder), name="fuse", daemon=True).start()
    loop = _run("losetup", "--find", "--show", str(disk))
    _run("mount", "-t", kind, loop, str(target))
    _run("sync", "--file-system", str(target))


def _answer(request: dict[str, Any], loops: dict[str, str]) -> str:
    try:
        if "mount" in request:
            _mount_image(request["mount"], request["at"], loops)
        else:
            _unmount(request["unmount"])
            _run("losetup", "--detach", loops.pop(request["unmount"]))
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return "ok"


def _mount_image(image: str, target: str, loops: dict[str, str]) -> None:
    """On a loop device of its own: `mount -o loop` would take one that the last cut had, with what that has cached."""
    loop = _run("losetup", "--find", "--show", image)
    try:
        _run("mount", loop, target)
    except BaseException:
        _run("losetup", "--detach", loop)
        raise
    loops[target] = loop


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _unmount(path: str) -> None:
    """Whoever still uses it is being killed; after that, it is taken out of the tree and goes with its last user."""
    limit = time.monotonic() + _PATIENCE
    while subprocess.run(["umount", path], capture_output=True, check=False).returncode:
        if time.monotonic() > limit:
            _run("umount", "--lazy", path)
            return
        time.sleep(0.05)


def clean(directory: Path) -> None:
    """Unmount what is mounted below, free the loop devices of files below, and remove the directory."""
    below = f"{directory}/"
    fuse_file = f"{directory}/disk"
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(below) and mount != fuse_file]):
        _unmount(mount)
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().startswith(below):
                subprocess.run(["losetup", "--detach", f"/dev/{backing.parts[3]}"], capture_output=True, check=False)
        except OSError:  # freed meanwhile
            pass
    if fuse_file in mounts:
        _unmount(fuse_file)
    shutil.rmtree(directory, ignore_errors=True)


def clean_abandoned(parent: Path) -> None:
    for directory in parent.glob(f"{PREFIX}*"):
        try:
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            clean(directory)
        finally:
            os.close(lock)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
