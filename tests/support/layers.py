"""Layers built entry by entry, and two ways to apply them: in this process, without confinement, and by a worker."""

import errno
import gzip
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.layer import Limits
from carina.layer.apply import Applier
from carina.layer.compression import OCI_LAYER
from carina.layer.process import apply
from carina.layer.tar import Reader
from carina.mount import Mount

TIME = 1_700_000_000


class Layer:
    """An archive in the making; each method adds an entry of any name, however nasty, and returns the layer."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def _add(self, name: str, kind: bytes, *, data: bytes = b"", **fields: Any) -> "Layer":
        member = tarfile.TarInfo(name)
        member.type, member.size, member.mtime = kind, len(data), TIME
        for field, value in fields.items():
            setattr(member, field, value)
        self._blocks += [member.tobuf(tarfile.PAX_FORMAT), data, bytes(-len(data) % 512)]
        return self

    def file(self, name: str, data: bytes = b"", mode: int = 0o644, **fields: Any) -> "Layer":
        return self._add(name, tarfile.REGTYPE, data=data, mode=mode, **fields)

    def directory(self, name: str, mode: int = 0o755, **fields: Any) -> "Layer":
        return self._add(name, tarfile.DIRTYPE, mode=mode, **fields)

    def symlink(self, target: str, name: str) -> "Layer":
        return self._add(name, tarfile.SYMTYPE, linkname=target, mode=0o777)

    def link(self, target: str, name: str, mode: int = 0o644) -> "Layer":
        return self._add(name, tarfile.LNKTYPE, linkname=target, mode=mode)

    def device(self, name: str, major: int, minor: int) -> "Layer":
        return self._add(name, tarfile.CHRTYPE, devmajor=major, devminor=minor, mode=0o600)

    def node(self, name: str, kind: bytes) -> "Layer":
        """An entry of any type."""
        return self._add(name, kind, mode=0o600)

    def fifo(self, name: str) -> "Layer":
        return self._add(name, tarfile.FIFOTYPE, mode=0o600)

    def bytes(self) -> bytes:
        return b"".join(self._blocks) + bytes(1024)


class Direct:
    """`carina.layer.apply.Privileges`, for a process that has them."""

    def set_attribute(self, descriptor: int, name: bytes, value: bytes) -> None:
        os.setxattr(descriptor, name, value)

    def make_opaque(self, descriptor: int) -> None:
        os.setxattr(descriptor, b"trusted.overlay.opaque", b"y")

    def inherit(self, descriptor: int, path: bytes) -> None:
        pass

    def copy(self, descriptor: int, path: bytes) -> None:
        raise FileNotFoundError(errno.ENOENT, "no layers are below")


def apply_here(archive: bytes, root: Path, *, overlay: bool = False, limits: Limits | None = None) -> None:
    """Apply in this process, which is free to write everywhere: only the applier itself keeps it inside."""
    chunks = iter([archive[at : at + 10_000] for at in range(0, len(archive), 10_000)])
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    mask = os.umask(0)
    try:
        applier = Applier(descriptor, overlay=overlay, privileges=Direct(), limits=limits or Limits())
        applier.run(Reader(lambda: next(chunks, b"")))
    finally:
        os.umask(mask)
        os.close(descriptor)


@contextmanager
def blob_of(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("layer")
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)


async def apply_there(
    data: bytes, *mounts: Mount, media_type: str = OCI_LAYER, limits: Limits | None = None
) -> Descriptor:
    """Apply with a worker."""
    layer = Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))
    with blob_of(data) as blob:
        return await apply(blob, layer, mounts, sync_fs=False, limits=limits or Limits())


def bind(directory: Path) -> Mount:
    return Mount(type="bind", source=str(directory), options=("rw", "rbind"))


def compressed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def listing(root: Path) -> Mapping[str, tuple[object, ...]]:
    """What a tree holds: everything that a layer can say of it, but the times of directories."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(directories + files):
            path = Path(directory, name)
            status = path.lstat()
            is_directory = path.is_dir() and not path.is_symlink()
            data: object = None
            if path.is_symlink():
                data = os.readlink(path)
            elif path.is_file():
                data = path.read_bytes()
            first = name if is_directory else inodes.setdefault(status.st_ino, str(path.relative_to(root)))
            found[str(path.relative_to(root))] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                0 if is_directory else status.st_mtime_ns,
                data,
                first,
                {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                },
            )
    return found


def _attributes(path: Path) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)
