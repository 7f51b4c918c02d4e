"""A layer in another compression: its bytes a step at a time, so that whoever stores them sets the pace."""

import hashlib
from typing import Final

from carina.digest import Digest
from carina.layer.compression import compressor, decompressed

STEP: Final = 16 << 20
"""Bytes of the tar that one step reads at the most."""
ENOUGH: Final = 1 << 20
"""Bytes of a step's result from which on it ends."""


class Recompress:
    """Blocks: call `step` in a thread.

    Args:
        blob: a file descriptor of the layer, which stays the caller's.
        kind: `none`, `gzip` or `zstd`.
    """

    def __init__(self, blob: int, kind: str) -> None:
        self._chunks = decompressed(blob, "sniffed")
        self._made = bytearray()
        self._add, self._end = compressor(kind, self._made.extend)
        self._hash = hashlib.sha256(usedforsecurity=False)
        self._done = False

    def step(self) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            InvalidArgument: the layer's stream is damaged or cut off.
        """
        while not self._done and len(self._made) < ENOUGH:
            self._read()
        made = bytes(self._made)
        self._made.clear()
        return made

    def _read(self) -> None:
        taken = 0
        for chunk in self._chunks:
            self._hash.update(chunk)
            self._add(chunk)
            taken += len(chunk)
            if taken >= STEP or len(self._made) >= ENOUGH:
                return
        self._done = True
        self._end()

    @property
    def diff_id(self) -> Digest:
        """Digest of the tar, once `step` has returned the end."""
        return Digest(f"sha256:{self._hash.hexdigest()}")
