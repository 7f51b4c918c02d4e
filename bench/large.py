"""A large image of real files: those of this machine's Debian packages, in several layers, kept between runs.

The files of a package stay together, and packages go round the layers, so that every layer has small and large files.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import zstandard

from support.image import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Blob, Image, Layer

LAYERS: Final = 5
BYTES: Final = 1_700_000_000
ENTRIES: Final = 90_000
_LARGEST: Final = 32 << 20
_VERSION: Final = 1
_PIECE: Final = 1 << 20


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "carina-bench" / f"large-{_VERSION}"


def build(compression: str) -> Image:
    """The image with its layers compressed by `gzip` or `zstd`; the first call takes a minute or two."""
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "complete").exists():
        _archive(place)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        layers = list(pool.map(lambda number: _layer(place, number, compression), range(LAYERS)))
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    described = Blob(media_type=OCI_CONFIG, data=json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described.descriptor(),
        "layers": [layer.blob.descriptor() for layer in layers],
    }
    root = Blob(media_type=OCI_MANIFEST, data=json.dumps(manifest).encode())
    return Image(
        root=root,
        manifests=(root,),
        blobs=(described, *(layer.blob for layer in layers)),
        layers=tuple(layers),
        config=described,
    )


def sizes() -> tuple[int, int]:
    """Bytes of the layers' files, and their number."""
    found = json.loads((cache() / "complete").read_text())
    return found["bytes"], found["entries"]


def _architecture() -> str:
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _archive(place: Path) -> None:
    """Choose the files, and write the layers' archives."""
    chosen: list[list[Path]] = [[] for _ in range(LAYERS)]
    seen: set[Path] = set()
    total = 0
    for number, files in enumerate(_packages()):
        for path in files:
            if path not in seen:
                seen.add(path)
                chosen[number % LAYERS].append(path)
                total += path.lstat().st_size
        if total >= BYTES and len(seen) >= ENTRIES:
            break
    if total < BYTES * 0.88 or len(seen) < ENTRIES * 0.89:
        raise SystemExit(f"bench: this machine's packages have but {len(seen)} files of {total} bytes")
    for number, paths in enumerate(chosen):
        _tar(place / f"{number}.tar", paths)
    (place / "complete").write_text(json.dumps({"bytes": total, "entries": len(seen)}))


def _packages() -> Iterable[Sequence[Path]]:
    """Files, links and directories of each installed package below /usr: packages of many small files first."""
    names = subprocess.run(
        ["dpkg-query", "-W", "-f", "${binary:Package}\n"], capture_output=True, text=True, check=True
    )
    found = []
    for name in names.stdout.split():
        listed = subprocess.run(["dpkg-query", "-L", name], capture_output=True, text=True, check=True).stdout
        paths = [Path(line) for line in listed.splitlines() if line.startswith("/usr/")]
        paths = [path for path in paths if _suitable(path)]
        if paths:
            found.append((sum(path.lstat().st_size for path in paths) / len(paths), name, paths))
    # Small files would run out last otherwise; taken first and last in turns, both kinds are there.
    found.sort()
    while found:
        yield found.pop(0)[2]
        if found:
            yield found.pop()[2]


def _suitable(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return path.is_symlink() or path.is_dir() or (path.is_file() and status.st_size <= _LARGEST)


def _tar(target: Path, paths: Iterable[Path]) -> None:
    names = b"".join(os.fsencode(path.relative_to("/")) + b"\0" for path in sorted(paths))
    command = ["tar", "--format=pax", "--pax-option=delete=atime,delete=ctime", "--no-recursion", "--null"]
    subprocess.run([*command, "-C", "/", "-cf", target, "-T", "-"], input=names, check=True)


def _layer(place: Path, number: int, compression: str) -> Layer:
    source, target = place / f"{number}.tar", place / f"{number}.tar.{compression}"
    if not target.exists():
        partial = target.with_suffix(".part")
        if compression == "gzip":
            with partial.open("wb") as output:
                subprocess.run(["gzip", "-6", "-n", "-c", source], stdout=output, check=True)
        else:
            with source.open("rb") as plain, partial.open("wb") as output:
                zstandard.ZstdCompressor(level=3).copy_stream(plain, output)
        partial.rename(target)
    with source.open("rb") as plain:
        diff_id = hashlib.file_digest(plain, "sha256").hexdigest()
    blob = Blob(media_type=f"{OCI_LAYER}+{compression}", data=target.read_bytes())
    return Layer(blob=blob, diff_id=f"sha256:{diff_id}")


def forget() -> None:
    """Delete what is kept between runs."""
    shutil.rmtree(cache().parent, ignore_errors=True)
