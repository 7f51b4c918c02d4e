"""Fetch an image into a directory, with no daemon and no rights. embedded.py REFERENCE DIRECTORY"""

import asyncio
import sys
from pathlib import Path

import carina


async def main(reference: str, directory: str) -> None:
    async with carina.embedded(Path(directory)) as client:
        image = await client.pull(reference)
        print(image.name, image.target.digest)


asyncio.run(main(*sys.argv[1:]))
