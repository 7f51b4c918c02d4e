"""Decompression beside parsing: one thread decompresses and hashes, another takes the chunks."""

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

from carina.errors import ResourceExhausted
from carina.layer import Limits

_AHEAD: Final = 16
"""Chunks that may wait: some mebibytes, so that neither thread waits for the other at each turn."""


class Feed:
    """Chunks of a stream, hashed and counted on their way."""

    def __init__(self, chunks: Iterator[bytes], *, compressed: int, limits: Limits) -> None:
        self._chunks = chunks
        self._compressed = compressed
        self._limits = limits
        self._hash = hashlib.sha256(usedforsecurity=False)
        self._ready: deque[bytes] = deque()
        self._filled = threading.Semaphore(0)
        self._room = threading.Semaphore(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="decompress", daemon=True)
        self.size = 0
        """Bytes that went through so far."""

    def start(self) -> None:
        self._thread.start()

    def pull(self) -> bytes:
        """The next chunk; empty at the end.

        Raises:
            InvalidArgument: the stream is damaged.
            ResourceExhausted: it is larger than the limits allow.
        """
        self._filled.acquire()
        chunk = self._ready.popleft()
        if not chunk:
            # For whoever asks again.
            self._ready.append(b"")
            self._filled.release()
            if self._error is not None:
                raise self._error
        self._room.release()
        return chunk

    def hexdigest(self) -> str:
        """Of the whole stream, once `pull` has returned its end."""
        return self._hash.hexdigest()

    def _fill(self) -> None:
        try:
            for chunk in self._chunks:
                self._hash.update(chunk)
                self.size += len(chunk)
                self._check()
                self._room.acquire()
                self._ready.append(chunk)
                self._filled.release()
        except BaseException as error:  # the taker raises it
            self._error = error
        self._ready.append(b"")
        self._filled.release()

    def _check(self) -> None:
        limits = self._limits
        if self.size > limits.bytes > 0:
            raise ResourceExhausted(f"the layer is larger than {limits.bytes} bytes")
        if limits.ratio > 0 and self.size > limits.ratio_from and self.size > limits.ratio * self._compressed:
            raise ResourceExhausted(
                f"the layer is more than {limits.ratio} times as large as its blob of {self._compressed} bytes"
            )
