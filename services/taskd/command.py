"""Running a shim's binary: for `start`, `delete`, `-info` and `-v`, each over within its time.

The process gets a session of its own, stdin from memory, and pipes whose content is bounded.
What it leaves running in the background (for `start` that is the shim itself) outlives us, and may keep the pipes open:
the output is what was in them when the command itself ended.
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carina.aio.children import Child
from carina.aio.threads import in_thread
from carina.errors import NotFound, Unavailable
from carina.linux.errnos import translated

MAX_OUTPUT: Final = 1 << 20
_CHUNK: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Both outputs for a person, shortened."""
        shown = b"\n".join(part.strip() for part in (self.stdout, self.stderr) if part.strip())
        return shown[:2000].decode(errors="replace") or "no output"


class _Pipe:
    """Collects what comes out of a pipe, up to a limit; the rest is read and forgotten."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.writer, True)
        self._data = bytearray()
        self._loop.add_reader(self._reader, self._read)

    def _read(self) -> bool:
        """False when there is nothing to read now."""
        try:
            chunk = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._reader)
        self._data += chunk[: MAX_OUTPUT - len(self._data)]
        return bool(chunk)

    def rest(self) -> bytes:
        """All that has come, and is in the pipe now."""
        while len(self._data) < MAX_OUTPUT and self._read():
            pass
        return bytes(self._data)

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.close_writer()
        self._loop.remove_reader(self._reader)
        os.close(self._reader)


def _memory(data: bytes) -> int:
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def run(
    binary: Path,
    arguments: Sequence[str],
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    seconds: float,
) -> Output:
    """Run to the end.

    Raises:
        NotFound: there is no such binary.
        Unavailable: it took longer than `seconds`; it and what it started have been killed.
        CarinaError: it can't be executed.
    """
    with contextlib.ExitStack() as made:
        try:
            source = await in_thread(_memory, stdin) if stdin else subprocess.DEVNULL
            if source >= 0:
                made.callback(os.close, source)
            out = _Pipe()
            made.callback(out.close)
            err = _Pipe()
            made.callback(err.close)
            process = await Child.start(
                [str(binary), *arguments],
                directory=directory,
                environment={**os.environ, **(environment or {})},
                stdin=source,
                stdout=out.writer,
                stderr=err.writer,
            )
        except FileNotFoundError as error:
            raise NotFound(f"shim {binary} can't be executed: it or its directory is not there") from error
        except OSError as error:
            raise translated(error, f"executing shim {binary}") from error
        out.close_writer()
        err.close_writer()
        status = await _finished(process, f"shim {binary} {arguments[-1]}", seconds)
        return Output(status=status, stdout=out.rest(), stderr=err.rest())


async def _finished(process: Child, what: str, seconds: float) -> int:
    try:
        async with asyncio.timeout(seconds):
            return await process.wait()
    except TimeoutError as error:
        raise Unavailable(f"{what}: not finished within {seconds:g} s, killed") from error
    finally:
        await process.killed()
