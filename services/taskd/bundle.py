"""Bundles: what a task has on disk, under the paths where shims and tools know it from containerd.

<state>/io.containerd.runtime.v2.task/<namespace>/<id>/
    config.json         the OCI runtime specification
    rootfs/             where the shim mounts the root file system
    work                link to <root>/taskd/work/<namespace>/<id>
    log                 FIFO of the shim's log
    shim-binary-path    which shim it is
    bootstrap.json      how to reach it (`address` holds the address alone, for older tools)
    sandbox             the sandbox whose shim it is on, if that is so
and what the shim adds (init.pid, options.json, ...). A bundle without bootstrap.json has a shim that never answered.

Everything here blocks: call it in a thread. Files are written under a temporary name and renamed.
State lies on a tmpfs and ends with the machine, as its containers do: nothing is flushed to disk.
"""

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from carina.errors import AlreadyExists, CarinaError, DataLoss, FailedPrecondition, InvalidArgument
from carina.linux.errnos import translated
from carina.linux.mount import mount_points, unmount_beneath

MAX_SPEC: Final = 16 << 20
_MAX_FILE: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How to reach a shim: what its `start` answered."""

    version: int
    address: str
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    namespace: str
    id: str
    path: Path
    work: Path
    mode: int = 0o711
    """Of the directories above it: a remapped root must get through them to its root file system."""

    @property
    def log(self) -> Path:
        return self.path / "log"

    def create(self, spec: bytes) -> None:
        """Make the directory.

        Raises:
            AlreadyExists: it is there.
            InvalidArgument: the specification is not a JSON object.
        """
        group = _remapped_group(self.id, spec)
        try:
            for directory in (self.path.parent.parent, self.path.parent):
                directory.mkdir(mode=self.mode, parents=True, exist_ok=True)
                directory.chmod(self.mode)
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            raise AlreadyExists(f"bundle {self.path} exists already") from None
        except OSError as error:
            raise translated(error, f"creating bundle {self.path}") from error
        try:
            self._fill(spec, group)
        except BaseException as error:
            self._unfill()
            if isinstance(error, OSError):
                raise translated(error, f"creating bundle {self.path}") from error
            raise

    def _fill(self, spec: bytes, group: int | None) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(mode=0o700, parents=True)
        (self.path / "rootfs").mkdir(mode=0o711)
        (self.path / "work").symlink_to(self.work)
        os.mkfifo(self.log, 0o600)
        self.write("config.json", spec)
        if group is not None:
            # A remapped root must get to its root file system through this directory, and nobody else.
            os.chown(self.path, -1, group)
            self.path.chmod(0o710)

    def _unfill(self) -> None:
        """Remove what `_fill` has made so far, without a descriptor: the want of one may be why it stopped."""
        for name in ("work", "log", "config.json", ".config.json.new"):
            with contextlib.suppress(OSError):
                os.unlink(self.path / name)
        for directory in (self.path / "rootfs", self.work, self.path):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def write(self, name: str, data: bytes) -> None:
        """Put a file into the bundle, whole or not at all."""
        temporary = self.path / f".{name}.new"
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
        temporary.rename(self.path / name)

    def remember_shim(self, binary: Path) -> None:
        self.write("shim-binary-path", str(binary).encode())

    def remember_bootstrap(self, bootstrap: Bootstrap) -> None:
        self.write("address", bootstrap.address.encode())
        self.write("bootstrap.json", json.dumps(asdict(bootstrap)).encode())

    def remember_sandbox(self, id: str) -> None:
        self.write("sandbox", id.encode())

    def sandbox(self) -> str:
        """The sandbox whose shim the task is on; empty for none."""
        return self.read("sandbox") or ""

    def shim(self) -> Path | None:
        """The shim's binary; None where that was not written yet."""
        text = self.read("shim-binary-path")
        return None if text is None else Path(text)

    def bootstrap(self) -> Bootstrap | None:
        """How to reach the shim; None where it never answered.

        Raises:
            DataLoss: the file is damaged.
        """
        text = self.read("bootstrap.json")
        if text is None:
            return None
        try:
            found = json.loads(text)
            return Bootstrap(
                version=int(found["version"]), address=str(found["address"]), protocol=str(found["protocol"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"bundle {self.path}: bootstrap.json is damaged") from error

    @property
    def was_created(self) -> bool:
        """Whether the shim got as far as creating the container's first process."""
        return (self.path / "init.pid").exists()

    def init_pid(self) -> int:
        text = self.read("init.pid") or ""
        return int(text) if text.isascii() and text.isdigit() else 0

    def read(self, name: str) -> str | None:
        """The beginning of a file of the bundle; None where there is none."""
        try:
            with open(self.path / name, encoding="utf-8", errors="replace") as file:
                return file.read(_MAX_FILE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translated(error, f"reading {name} of bundle {self.path}") from error

    def remove(self) -> None:
        """Unmount and remove everything; nothing happens where there is nothing.

        Raises:
            FailedPrecondition: a mount remains, or the root file system is not empty; then nothing of it is removed.
        """
        if self.path.exists():
            unmount_beneath(self.path)
            prefix = f"{os.path.realpath(self.path)}/"
            if any(point.startswith(prefix) for point in mount_points()):
                raise FailedPrecondition(f"bundle {self.path} can't be removed: a mount remains in it")
            try:
                with contextlib.suppress(FileNotFoundError):
                    (self.path / "rootfs").rmdir()
                doomed = self.path.with_name(f".{self.path.name}")
                shutil.rmtree(doomed, ignore_errors=True)
                self.path.rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                raise translated(error, f"removing bundle {self.path}") from error
        shutil.rmtree(self.work, ignore_errors=True)


def _remapped_group(id: str, spec: bytes) -> int | None:
    """The host's id of the group that is 0 in the container, where it has a user namespace of its own."""
    if len(spec) > MAX_SPEC:
        raise InvalidArgument(f"container {id}: its spec is longer than {MAX_SPEC} bytes")
    try:
        found = json.loads(spec)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"container {id}: its spec is not JSON") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"container {id}: its spec is not a JSON object")
    linux = found.get("linux")
    mappings = linux.get("gidMappings") if isinstance(linux, dict) else None
    for mapping in mappings if isinstance(mappings, list) else []:
        if isinstance(mapping, dict) and mapping.get("containerID") == 0 and isinstance(mapping.get("hostID"), int):
            host: int = mapping["hostID"]
            return host if 0 < host < 2**32 - 1 else None
    return None


def bundles(directory: Path, work: Path) -> list[Bundle]:
    """Every bundle on disk. Half-removed ones are removed now."""
    found = []
    for namespace in _directories(directory):
        for path in _directories(namespace):
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
                continue
            name = namespace.name
            found.append(Bundle(namespace=name, id=path.name, path=path, work=work / name / path.name))
    return found


def _directories(directory: Path) -> list[Path]:
    try:
        return [entry for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CarinaError(f"listing {directory}: {(error.strerror or str(error)).lower()}") from error
