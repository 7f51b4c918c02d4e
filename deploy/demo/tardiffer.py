"""A differ in fewer than fifty lines: layers that are plain tars, applied by tar(1). To be swapped in live.

tardiffer.py GATEWAY SOCKET
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carina import plugin
from carina.aio.threads import in_thread
from carina.client import Client
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError, Unimplemented
from carina.linux.mount import mounted
from carina.mount import Mount


class TarDiffer:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = True, payloads: Mapping[str, bytes] = {}
    ) -> Descriptor:
        if "tar" not in layer.media_type:
            raise Unimplemented(f"{layer.media_type} is no tar")
        async with await self._client.content.reader(Digest(layer.digest)) as reader:
            data = await reader.read(0, reader.size)
        unpacked = await in_thread(_apply, data, mounts)
        return Descriptor(
            media_type="application/vnd.oci.image.layer.v1.tar", digest=Digest.of(unpacked), size=len(unpacked)
        )

    async def diff(self, *words: Any, **more: Any) -> Descriptor:
        raise Unimplemented("this differ applies layers and makes none")


def _apply(data: bytes, mounts: Sequence[Mount]) -> bytes:
    if data[:2] == b"\x1f\x8b":
        data = subprocess.run(["gzip", "-dc"], input=data, capture_output=True, check=True).stdout
    with mounted(mounts) as tree:
        done = subprocess.run(
            ["tar", "-xpC", str(tree), "--numeric-owner"], input=data, capture_output=True, check=False
        )
    if done.returncode:
        raise CarinaError(f"tar: {done.stderr.decode().strip()}")
    return data


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: tardiffer.py GATEWAY SOCKET")
    plugin.serve(TarDiffer(Client(sys.argv[1])), Path(sys.argv[2]).absolute())
