"""Image verifiers: programs that say whether an image may be pulled, called as containerd's `bindir` plugin calls them.

    PROGRAM -name REFERENCE -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json

The descriptor is on the standard input. Exit status 0 accepts; any other rejects, with the reason on standard output.
Every program of the directory must accept, in the order of their names. What can't be run, or takes too long, rejects.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from carina.aio.finish import finish
from carina.aio.threads import in_thread
from carina.descriptor import Descriptor
from carina.errors import InvalidArgument, PermissionDenied

DEFAULT_DIRECTORY: Final = Path("/opt/carina/image-verifier/bin")
MEDIA_TYPE: Final = "application/vnd.oci.descriptor.v1+json"
MAX_REASON: Final = 16 * 1024
"""Bytes of a program's output that are kept."""
_KEYS: Final = ("bin_dir", "max_verifiers", "per_verifier_timeout")
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifiers:
    """The programs of a directory; one that does not exist has none."""

    bin_dir: Path = DEFAULT_DIRECTORY
    max_verifiers: int = 10
    """Programs after the first so many are not called; -1: no limit."""
    per_verifier_timeout: float = 10.0
    """Seconds."""

    async def check(self, name: str, descriptor: Descriptor) -> None:
        """Raises PermissionDenied, with the reason, where a program does not accept the image."""
        programs = await in_thread(self._programs)
        for program in programs:
            status, reason = await self._run(program, name, descriptor)
            if status:
                why = f"with status {status}: {reason}" if reason else f"with status {status}"
                raise PermissionDenied(f"image {name} ({descriptor.digest}): verifier {program.name} rejects it {why}")
            _log.info("verifier %s accepts image %s (%s): %s", program.name, name, descriptor.digest, reason)

    def _programs(self) -> list[Path]:
        try:
            found = sorted(self.bin_dir.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PermissionDenied(f"image verifiers in {self.bin_dir} can't be listed: {error.strerror}") from error
        if 0 <= self.max_verifiers < len(found):
            _log.warning("%s has %d verifiers, only %d are called", self.bin_dir, len(found), self.max_verifiers)
            return found[: self.max_verifiers]
        return found

    async def _run(self, program: Path, name: str, descriptor: Descriptor) -> tuple[int, str]:
        arguments = ("-name", name, "-digest", str(descriptor.digest), "-stdin-media-type", MEDIA_TYPE)
        pipe, given = asyncio.subprocess.PIPE, await in_thread(_given, descriptor)
        try:
            process = await asyncio.create_subprocess_exec(
                program, *arguments, stdin=given, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise PermissionDenied(f"image {name}: verifier {program.name} can't be run: {error.strerror}") from error
        finally:
            os.close(given)
        try:
            async with asyncio.timeout(self.per_verifier_timeout):
                return await _answer(process, program.name)
        except TimeoutError as error:
            raise PermissionDenied(
                f"image {name}: verifier {program.name} takes more than {self.per_verifier_timeout:g} s"
            ) from error
        finally:
            await finish(_end(process))


async def _answer(process: asyncio.subprocess.Process, name: str) -> tuple[int, str]:
    assert process.stdout
    assert process.stderr
    async with asyncio.TaskGroup() as group:
        output = group.create_task(_read(process.stdout), name=f"verifier {name} output")
        complaint = group.create_task(_read(process.stderr), name=f"verifier {name} errors")
    if complaint.result():
        _log.debug("verifier %s says: %s", name, complaint.result())
    return await process.wait(), output.result()


def _given(descriptor: Descriptor) -> int:
    """A file without a name that holds the descriptor: a program need not read it, and none waits for it."""
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        document["annotations"] = dict(descriptor.annotations)
    fd = os.memfd_create("descriptor", os.MFD_CLOEXEC)
    try:
        os.write(fd, json.dumps(document).encode())
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def _read(stream: asyncio.StreamReader) -> str:
    """Everything that a program writes, of which the beginning is kept."""
    kept = bytearray()
    while data := await stream.read(MAX_REASON):
        kept += data[: MAX_REASON - len(kept)]
    return kept.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a program with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    # Its pipes too, of which something that left the group may still hold the other ends.
    cast(Any, process)._transport.close()


def verifiers(table: object) -> Verifiers:
    """Read `[images.verifier]`, containerd's keys. Raises InvalidArgument, naming the key."""
    if not isinstance(table, dict):
        raise InvalidArgument("images.verifier must be a table")
    for key in table:
        if key not in _KEYS:
            raise InvalidArgument(f"images.verifier.{key} is not a setting: expected one of {', '.join(_KEYS)}")
    limit = table.get("max_verifiers", 10)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < -1:
        raise InvalidArgument("images.verifier.max_verifiers must be a number, -1 for no limit")
    return Verifiers(
        bin_dir=Path(str(table.get("bin_dir", DEFAULT_DIRECTORY))),
        max_verifiers=limit,
        per_verifier_timeout=_seconds(table.get("per_verifier_timeout", "10s")),
    )


def _seconds(value: object) -> float:
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    parts = found.groups(default="0") if found else ("0", "0", "0")
    seconds = int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
    if seconds <= 0:
        raise InvalidArgument('images.verifier.per_verifier_timeout must be a duration, as "10s" or "1m30s"')
    return seconds
