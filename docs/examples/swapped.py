"""`program.py` with content and snapshots kept by objects of this process; the rest is the server's.

swapped.py ADDRESS REFERENCE NAMESPACE DIRECTORY
"""

import asyncio
import sys
from pathlib import Path

from program import program

import carina
from carina.errors import CarinaError
from carina.snapshots.directory import DirectorySnapshotter
from contentd.store import LocalContentStore


class Copies(DirectorySnapshotter):
    """Every snapshot is a full copy of its parent."""

    async def fill(self, tree: Path, parent: Path | None) -> None:
        if parent is not None:
            copy = await asyncio.create_subprocess_exec("cp", "-a", f"{parent}/.", str(tree))
            if await copy.wait():
                raise CarinaError(f"{parent} can't be copied")


async def main(address: str, reference: str, namespace: str, directory: Path) -> None:
    copies = await asyncio.to_thread(Copies, directory / "snapshots")
    async with (
        LocalContentStore(directory / "content") as content,
        carina.Client(
            address, namespace=namespace, content=content, snapshotters={"copies": copies}, snapshotter="copies"
        ) as client,
    ):
        await program(client, reference)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
