"""A snapshotter in thirty lines: every snapshot is a full copy of its parent. A proxy plugin for Carina and containerd.

copysnapshotter.py DIRECTORY SOCKET
"""

import asyncio
import sys
from pathlib import Path

from carina import plugin
from carina.errors import CarinaError
from carina.snapshots.directory import DirectorySnapshotter


class CopySnapshotter(DirectorySnapshotter):
    async def fill(self, tree: Path, parent: Path | None) -> None:
        if parent is None:
            return
        pipe = asyncio.subprocess.PIPE
        copy = await asyncio.create_subprocess_exec("cp", "-a", "--reflink=auto", f"{parent}/.", str(tree), stderr=pipe)
        _, complaint = await copy.communicate()
        if copy.returncode:
            raise CarinaError(f"copying {parent}: {complaint.decode().strip()}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: copysnapshotter.py DIRECTORY SOCKET")
    directory, socket = sys.argv[1:]
    plugin.serve(CopySnapshotter(Path(directory).absolute()), Path(socket).absolute())
