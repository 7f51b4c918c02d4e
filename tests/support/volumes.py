"""File systems of their own, on loop devices: for what the machine's may not be, and to be filled up."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def volume(base: Path, kind: str, *, megabytes: int = 128, options: tuple[str, ...] = ()) -> Iterator[Path]:
    """A fresh file system of a kind, mounted below `base` for the block. Skips where the machine can't have it."""
    program = f"mkfs.{kind}"
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    if kind not in Path("/proc/filesystems").read_text().split() and not Path("/lib/modules").is_dir():
        pytest.skip(f"the kernel has no {kind}")
    image, point = base / f"{kind}.img", base / kind
    with image.open("wb") as stream:
        stream.truncate(megabytes << 20)
    point.mkdir()
    _run(program, "-q", *options, str(image))
    mount = subprocess.run(["mount", "-o", "loop", str(image), str(point)], capture_output=True, text=True, check=False)
    if mount.returncode != 0:
        pytest.skip(f"{kind} can't be mounted here: {mount.stderr.strip()}")
    try:
        yield point
    finally:
        _run("umount", str(point))
        image.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
