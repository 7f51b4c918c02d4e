"""What `doctor` looks at, one function a subject. Each changes nothing, and needs a moment at most."""

import contextlib
import importlib.util
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carina.config import Config
from carina.errors import CarinaError

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"
OLDEST_KERNEL: Final = (5, 6)
"""openat2(2); pidfd_open(2) is older."""
GOOD_KERNEL: Final = (5, 19)
"""Mounts of overlayfs with mapped ids."""
HOLES: Final = (
    ("CVE-2024-21626: a container gets out by a leaked descriptor", ((1, 1, 12),)),
    ("CVE-2024-45310: a container makes files on the host", ((1, 1, 14), (1, 2, 0))),
    (
        "CVE-2025-31133, -52565 and -52881: a container gets out by masked paths and its console",
        ((1, 2, 8), (1, 3, 3), (1, 4, 0)),
    ),
)
"""Of runc: what each is, and the versions that end it, the first of each branch."""
_PACKAGES: Final = (
    "aiohttp",
    "aiosqlite",
    "betterproto2",
    "grpclib",
    "hpack",
    "isal",
    "msgspec",
    "uvloop",
    "zstandard",
)
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    status: str
    subject: str
    text: str
    todo: str = ""
    """What to do about it; empty where that is nothing."""


def about_machine(config: Config, default: Path) -> Iterator[Finding]:
    yield _user()
    yield _python()
    yield _kernel()
    yield _root_mount()
    yield _control_groups()
    yield _overlay(config.root)
    yield _user_namespaces()
    yield _clock()
    yield _descriptors()
    for place in dict.fromkeys((config.root, config.state, Path("/tmp"))):
        yield _space(_existing(place))
    yield from _directories(config)
    if default.exists() and default.stat().st_mode & stat.S_IWOTH:
        yield Finding(FAIL, "configuration", f"{default} is writable by everybody", f"chmod o-w {default}")


def about_runtime() -> Iterator[Finding]:
    yield _runc()
    for program, why, package in (
        ("containerd-shim-runc-v2", "the default runtime io.containerd.runc.v2 needs it", "containerd"),
        ("containerd-shim-carina-v1", "the runtime io.containerd.carina.v1 needs it", ""),
    ):
        found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
        if found:
            yield Finding(OK, program, found)
        elif package:
            yield Finding(WARN, program, f"is not in PATH: {why}", f"apt-get install {package}")


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding(OK, "user", "root")
    text = "not root: Carina mounts file systems and runs containers as root, and some of this can't be seen"
    return Finding(WARN, "user", text, "Try again with sudo.")


def _python() -> Finding:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(FAIL, "python", f"packages are missing: {', '.join(missing)}", "make setup")
    return Finding(OK, "python", ".".join(map(str, sys.version_info[:3])))


def _kernel() -> Finding:
    release = os.uname().release
    found = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if found < OLDEST_KERNEL:
        return Finding(FAIL, "kernel", f"{release} is too old", "Install Linux 5.6 or later, better 5.19.")
    if found < GOOD_KERNEL:
        text = f"{release}: images can't be mounted with mapped ids, for containers in user namespaces"
        return Finding(WARN, "kernel", text, "Linux 5.19 and later can.")
    return Finding(OK, "kernel", release)


def _root_mount() -> Finding:
    """Layers are applied in a mount namespace of their own, whose mounts are made private from the root on."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if any(line.split()[4] == "/" for line in mounts):
        return Finding(OK, "root directory", "is a mount point")
    todo = "Bind the directory on itself before chroot (mount --bind DIR DIR), or use a container or a virtual machine."
    return Finding(FAIL, "root directory", "is no mount point (a chroot?): images can't be unpacked", todo)


def _control_groups() -> Finding:
    base = Path("/sys/fs/cgroup")
    if (base / "cgroup.controllers").exists():
        have = set((base / "cgroup.controllers").read_text().split())
        missing = sorted({"cpu", "memory", "pids"} - have)
        if missing:
            return Finding(
                WARN,
                "control groups",
                f"version 2, without {', '.join(missing)}: such limits have no effect",
                "See cgroup_disable= on the kernel's command line, and Delegate= of the service manager.",
            )
        return Finding(OK, "control groups", "version 2")
    if any((base / name).is_dir() for name in ("memory", "cpu", "pids")):
        return Finding(OK, "control groups", "version 1" + (", hybrid" if (base / "unified").is_dir() else ""))
    return Finding(FAIL, "control groups", "there are none at /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup")


def _overlay(root: Path) -> Finding:
    """Mount one, on the file system that the snapshots are on."""
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        if os.geteuid() == 0:
            with contextlib.suppress(OSError):
                subprocess.run(["modprobe", "overlay"], capture_output=True, check=False)
        if "overlay" not in Path("/proc/filesystems").read_text().split():
            todo = "modprobe overlay; without it use --snapshotter native."
            return Finding(FAIL, "overlayfs", "this kernel has none", todo)
    if os.geteuid() != 0:
        return Finding(OK, "overlayfs", "the kernel has it; not tried: that takes root")
    from carina.linux.mount import mounted
    from carina.mount import Mount

    place = _existing(root)
    try:
        with tempfile.TemporaryDirectory(prefix=".carina-doctor-", dir=place) as name:
            for directory in ("lower", "upper", "work"):
                os.mkdir(f"{name}/{directory}")
            options = [f"{directory}dir={name}/{directory}" for directory in ("lower", "upper", "work")]
            with mounted([Mount(type="overlay", source="overlay", options=tuple(options))]) as tree:
                (Path(tree) / "file").write_text("")
    except (CarinaError, OSError) as error:
        todo = f"{place} must be on ext4, xfs or btrfs, not on an overlay or nfs; or use --snapshotter native."
        return Finding(FAIL, "overlayfs", f"can't be mounted on {place}: {error}", todo)
    return Finding(OK, "overlayfs", f"mounts on {place}")


def _user_namespaces() -> Finding:
    most = _number("/proc/sys/user/max_user_namespaces")
    if not Path("/proc/self/ns/user").exists() or most == 0:
        return Finding(
            WARN, "user namespaces", "there are none: --uidmap fails", "sysctl user.max_user_namespaces=15000"
        )
    if _number("/proc/sys/kernel/unprivileged_userns_clone") == 0 or _number(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    ):
        return Finding(OK, "user namespaces", "for root only")
    return Finding(OK, "user namespaces", "for everybody")


def _clock() -> Finding:
    """A clock that is wrong makes certificates invalid and leases expire."""
    newest = Path(__file__).stat().st_mtime
    if time.time() < newest - 24 * 3600:
        return Finding(
            FAIL,
            "clock",
            f"{time.strftime('%Y-%m-%d %H:%M')} is before this program was installed",
            "timedatectl set-ntp true, or date --set: certificates fail and leases expire by it.",
        )
    if shutil.which("timedatectl"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
            said = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False).stdout.strip()
            if said == "no":
                return Finding(WARN, "clock", "it is not kept right by anybody", "timedatectl set-ntp true")
    return Finding(OK, "clock", time.strftime("%Y-%m-%d %H:%M %Z"))


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        return Finding(
            WARN, "open files", f"at most {hard}", "ulimit -Hn 65536, or LimitNOFILE= of the service manager."
        )
    return Finding(OK, "open files", f"{soft}, at most {hard}")


def _existing(place: Path) -> Path:
    """The directory itself, or the nearest above it that is there."""
    for one in (place, *place.parents):
        with contextlib.suppress(OSError):
            if one.is_dir():
                return one
    return Path("/")


def _space(place: Path) -> Finding:
    found = os.statvfs(place)
    free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    inodes = found.f_favail / found.f_files if found.f_files else 1.0
    subject = f"space at {place}"
    text = f"{free / _GIB:.1f} of {whole / _GIB:.1f} GiB free, {inodes:.0%} of inodes"
    if free < 64 * _MIB or inodes < 0.005:
        return Finding(
            FAIL, subject, text, "Remove images (`carina gc plan --images` shows what comes back), or enlarge it."
        )
    if free < min(whole // 20, 5 * _GIB) or inodes < 0.05:
        return Finding(WARN, subject, text, "`carina gc plan --images` shows what removing each image brings back.")
    return Finding(OK, subject, text)


def _directories(config: Config) -> Iterator[Finding]:
    for place, allowed in ((config.root, 0o700), (config.state, 0o711)):
        subject = f"directory {place}"
        try:
            found = place.stat()
        except FileNotFoundError:
            yield Finding(OK, subject, "is made by the first `carina up`")
            continue
        except OSError as error:
            yield Finding(WARN, subject, f"can't be looked at: {error.strerror}", "Try again as root.")
            continue
        mode = stat.S_IMODE(found.st_mode)
        if mode & ~allowed & 0o777:
            text = f"mode {mode:04o} is wider than {allowed:04o}: others see what they should not"
            yield Finding(FAIL, subject, text, f"chmod {allowed:04o} {place}")
        elif found.st_uid not in (0, os.geteuid()):
            yield Finding(FAIL, subject, f"belongs to user {found.st_uid}", f"chown root {place}")
        else:
            yield Finding(OK, subject, f"mode {mode:04o}")


def _runc() -> Finding:
    program = shutil.which("runc")
    if program is None:
        return Finding(FAIL, "runc", "is not in PATH: no container can run", "apt-get install runc")
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(FAIL, "runc", f"{program} can't be started: {error}", "apt-get install --reinstall runc")
    version = re.search(r"runc version (\d+)\.(\d+)\.(\d+)(\S*)", said)
    if version is None:
        return Finding(WARN, "runc", f"{program} does not say its version", "It may be another runtime of that name.")
    found = int(version[1]), int(version[2]), int(version[3])
    shown = ".".join(map(str, found)) + version[4]
    holes = open_holes(found)
    if not holes:
        return Finding(OK, "runc", shown)
    todo = "Install 1.2.8, 1.3.3 or 1.4; a distribution may have mended its own (apt-get changelog runc)."
    return Finding(WARN, "runc", f"{shown} has known holes: {'; '.join(holes)}", todo)


def open_holes(version: tuple[int, int, int]) -> list[str]:
    """The known holes of a version of runc: those that neither its branch nor an earlier one has mended."""
    return [hole for hole, mended in HOLES if not _is_mended(version, mended)]


def _is_mended(version: tuple[int, int, int], mended: tuple[tuple[int, int, int], ...]) -> bool:
    same = [one for one in mended if one[:2] == version[:2]]
    return version >= same[0] if same else version > max(mended)


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
