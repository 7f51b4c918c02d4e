"""Shims' binaries are run to their end, or ended."""

import asyncio
import os
from pathlib import Path

import pytest

from taskd import command


def _running(text: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and text.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


async def test_cancelled_at_once_leaves_no_process(tmp_path: Path) -> None:
    """A binary that is being started when nobody waits any more is killed as well."""
    for number in range(10):
        seconds = f"1000.{os.getpid()}{number}"
        task = asyncio.create_task(command.run(Path("/bin/sleep"), [seconds], directory=tmp_path, seconds=20))
        await asyncio.sleep(number / 2000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(_running, seconds) == []
