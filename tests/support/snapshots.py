"""Snapshotters in processes of their own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

DEMO: Final = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "copysnapshotter.py"


@contextlib.contextmanager
def serving(
    socket: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that serves on `socket`, until the end of the block. `environment` is added to this one's."""
    socket.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, *arguments], cwd="/", env={**os.environ, **(environment or {})})
    try:
        wait_for(socket, process)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def wait_for(socket: Path, process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not socket.is_socket():
        assert process.poll() is None, "the process ended instead of serving"
        assert time.monotonic() < end, f"{socket} did not appear"
        time.sleep(0.02)


def snapshotd(
    base: Path,
    name: str = "overlayfs",
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A snapshotd on `base`/root with its socket in `base`."""
    arguments = ["-m", "snapshotd", "--root", str(base / "root"), "--state", str(base), "--snapshotter", name]
    if config is not None:
        arguments += ["--config", str(config)]
    return serving(base / f"snapshotd-{name}.sock", *arguments, environment=environment)


def demo(base: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """The demonstration's snapshotter on `base`/trees, at `base`/demo.sock."""
    return serving(base / "demo.sock", str(DEMO), str(base / "trees"), str(base / "demo.sock"))
