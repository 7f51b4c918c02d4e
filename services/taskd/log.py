"""What shims write into the `log` FIFOs of their bundles, in our log: bounded in length and in rate."""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from carina.aio.threads import in_thread
from taskd.bundle import Bundle

MAX_LINE: Final = 2048
_LINES: Final = 100
_SECONDS: Final = 10.0
_CHUNK: Final = 16 << 10

log = logging.getLogger(__name__)


def _open(bundle: Bundle) -> int | None:
    try:
        # Opened for writing too, so that it doesn't end when the shim closes it, and the shim never waits for a reader.
        return os.open(bundle.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None


async def follow(bundle: Bundle) -> Callable[[], None]:
    """Log what comes until the returned function is called."""
    descriptor = await in_thread(_open, bundle)
    if descriptor is None:
        return lambda: None
    return _Follower(f"{bundle.namespace}/{bundle.id}", descriptor).close


class _Follower:
    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._window = self._loop.time()
        self._count = 0
        self._loop.add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            data = self._rest + os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return
        *lines, rest = data.split(b"\n")
        self._rest = rest[:MAX_LINE]
        for line in lines:
            self._write(line)

    def _write(self, line: bytes) -> None:
        now = self._loop.time()
        if now - self._window > _SECONDS:
            if self._count > _LINES:
                log.warning("shim %s: %d lines left out", self._name, self._count - _LINES)
            self._window, self._count = now, 0
        self._count += 1
        if line.strip() and self._count <= _LINES:
            level = logging.DEBUG if b"level=info" in line or b"level=debug" in line else logging.WARNING
            log.log(level, "shim %s: %s", self._name, line[:MAX_LINE].decode(errors="replace"))

    def close(self) -> None:
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
