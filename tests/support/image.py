"""Real images, made here: busybox in layers of tar, gzip or zstd, laid out as an OCI image layout.

Also used by the demo, which has to have something to pull where there is no network.
"""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
BUSYBOX = Path("/bin/busybox")


@dataclass(frozen=True, kw_only=True)
class Blob:
    media_type: str
    data: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def size(self) -> int:
        return len(self.data)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        found = {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **more}
        return found | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer's blob, and the digest of its tar."""

    blob: Blob
    diff_id: str


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image and all that belongs to it."""

    root: Blob
    """The manifest, or the index."""
    manifests: tuple[Blob, ...]
    """Every manifest and index, children before those that name them."""
    blobs: tuple[Blob, ...]
    """Configurations and layers."""
    layers: tuple[Layer, ...] = ()
    config: Blob | None = None

    @property
    def digest(self) -> str:
        return self.root.digest

    def write(self, directory: Path, name: str = "latest") -> Path:
        """Write it as an OCI image layout."""
        for blob in (*self.blobs, *self.manifests):
            path = directory / "blobs" / "sha256" / blob.digest.partition(":")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob.data)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        entry = self.root.descriptor(annotations={"org.opencontainers.image.ref.name": name})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        (directory / "index.json").write_text(json.dumps(index))
        return directory


def tar(entries: Mapping[str, bytes | str | None], *, modes: Mapping[str, int] | None = None) -> bytes:
    """A tar of paths: bytes are a file, a str a symbolic link to it, None a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in entries.items():
            info = tarfile.TarInfo(path)
            info.mtime = 1_700_000_000
            info.mode = (modes or {}).get(path, 0o755)
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def layer(data: bytes, compression: str = "gzip", *, media_type: str = "") -> Layer:
    """Pack a tar as a layer; `compression` is `gzip`, `zstd` or empty."""
    packed = {
        "gzip": lambda: gzip.compress(data, 6, mtime=0),
        "zstd": lambda: zstandard.compress(data),
        "": lambda: data,
    }
    suffix = f"+{compression}" if compression else ""
    blob = Blob(media_type=media_type or f"{OCI_LAYER}{suffix}", data=packed[compression]())
    return Layer(blob=blob, diff_id=f"sha256:{hashlib.sha256(data).hexdigest()}")


def busybox_tar() -> bytes:
    """A root file system of nothing but busybox and links to it."""
    listed = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    entries: dict[str, bytes | str | None] = dict.fromkeys(
        ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "var")
    )
    entries["bin/busybox"] = BUSYBOX.read_bytes()
    entries |= {f"bin/{name}": "busybox" for name in listed if name != "busybox"}
    entries["etc/passwd"] = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    entries["etc/group"] = b"root:x:0:\nnogroup:x:65534:\n"
    return tar(entries, modes={"tmp": 0o1777, "etc/passwd": 0o644, "etc/group": 0o644})


def build(
    *,
    layers: Sequence[Layer] = (),
    platforms: Sequence[str] = ("linux/amd64",),
    run: Mapping[str, Any] | None = None,
    index: bool = True,
    docker: bool = False,
) -> Image:
    """An image of `layers` (busybox, and a small one on top, unless given), the same for every platform.

    With `index` there is an index over the manifests; without, the first platform's manifest is the image.
    """
    layers = tuple(layers) or (layer(busybox_tar()), layer(tar({"etc/motd": b"Carina\n"}), "zstd"))
    manifests, blobs, entries = [], [one.blob for one in layers], []
    first: Blob | None = None
    for platform in platforms:
        config = _config(platform, layers, run or {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]}, docker=docker)
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": [one.blob.descriptor() for one in layers],
        }
        manifest = Blob(media_type=str(document["mediaType"]), data=json.dumps(document).encode())
        blobs.append(config)
        manifests.append(manifest)
        first = first or config
        entries.append(manifest.descriptor(platform=_platform(platform)))
    root = manifests[0]
    if index:
        media_type = DOCKER_INDEX if docker else OCI_INDEX
        data = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
        root = Blob(media_type=media_type, data=data)
        manifests.append(root)
    unique = {blob.digest: blob for blob in blobs}
    return Image(
        root=root, manifests=tuple(manifests), blobs=tuple(unique.values()), layers=tuple(layers), config=first
    )


def _config(platform: str, layers: Sequence[Layer], run: Mapping[str, Any], *, docker: bool) -> Blob:
    document = {
        "created": "2023-11-14T22:13:20Z",
        **_platform(platform),
        "config": dict(run),
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
        "history": [{"created_by": "tests"} for _ in layers],
    }
    return Blob(media_type=DOCKER_CONFIG if docker else OCI_CONFIG, data=json.dumps(document).encode())


def _platform(text: str) -> dict[str, str]:
    """In the order of Go's programs, which write it so again when they convert an image."""
    os, architecture, *variant = text.split("/")
    return {"architecture": architecture, "os": os} | ({"variant": variant[0]} if variant else {})
