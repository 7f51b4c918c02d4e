"""Stream processors: programs that turn a layer of a media type that we don't know into one of a type that we do.

A program reads the layer on its standard input, writes another one to its standard output, and finds the media type of
its input in the environment, and what the caller has for it, a message `google.protobuf.Any`, on descriptor 3,
as containerd has it. It runs where imaged does, before any layer is looked at.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from carina.aio.finish import finish, settle
from carina.aio.threads import in_thread
from carina.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from carina.layer.compression import of_media_type

MEDIA_TYPE_VARIABLE: Final = "STREAM_PROCESSOR_MEDIATYPE"
_KEYS: Final = frozenset(("accepts", "returns", "path", "args", "env"))
_COMPLAINT: Final = 4096
_SHELL: Final = "/bin/sh"
_LONGEST_CHAIN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProcessor:
    id: str
    accepts: tuple[str, ...]
    returns: str
    path: str
    """Absolute, and fixed when the configuration is read."""
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


def stream_processors(table: object) -> tuple[StreamProcessor, ...]:
    """Read `[images.stream_processors]`. Raises InvalidArgument, naming the key."""
    if not isinstance(table, Mapping):
        raise InvalidArgument("images.stream_processors must be a table")
    return tuple(_processor(name, entry) for name, entry in table.items())


def _processor(name: str, entry: object) -> StreamProcessor:
    where = f"images.stream_processors.{name}"
    if not isinstance(entry, Mapping):
        raise InvalidArgument(f"{where} must be a table")
    for key in entry:
        if key not in _KEYS:
            raise InvalidArgument(f"{where}.{key} is not a setting: expected one of {', '.join(sorted(_KEYS))}")
    for key in ("returns", "path"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise InvalidArgument(f"{where}.{key} must be a text")
    path = shutil.which(entry["path"])
    if path is None:
        raise InvalidArgument(f"{where}.path is {entry['path']!r}, which is no program on this machine")
    return StreamProcessor(
        id=name,
        accepts=_texts(entry, "accepts", where),
        returns=entry["returns"],
        path=os.path.abspath(path),
        args=_texts(entry, "args", where),
        env=_texts(entry, "env", where),
    )


def _texts(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidArgument(f"{where}.{key} must be a list of texts")
    return tuple(value)


def chain(processors: Sequence[StreamProcessor], media_type: str) -> list[StreamProcessor]:
    """The processors that a layer of this type goes through until it can be applied; none if it can be as it is.

    Raises:
        Unimplemented: there is no way.
    """
    found: list[StreamProcessor] = []
    current = media_type
    while True:
        try:
            of_media_type(current)
        except Unimplemented:
            following = next((one for one in processors if current in one.accepts), None)
            if following is None or len(found) == _LONGEST_CHAIN:
                raise Unimplemented(f"media type {media_type!r} is not that of a layer that can be applied") from None
            found.append(following)
            current = following.returns
        else:
            return found


async def run(
    processor: StreamProcessor,
    *,
    media_type: str,
    source: int,
    target: int,
    limit: int,
    payload: bytes | None = None,
) -> None:
    """Have the program read the file `source` from its start and write to the file `target`, `limit` bytes at the most.

    Raises:
        FailedPrecondition: it can't be started, or ends with an error.
        ResourceExhausted: it writes more.
    """
    os.lseek(source, 0, os.SEEK_SET)
    what = f"stream processor {processor.id}"
    with contextlib.ExitStack() as stack:
        handed = None
        if payload is not None:
            handed = await in_thread(_in_memory, payload)
            stack.callback(os.close, handed)
        process = await _started(processor, media_type=media_type, source=source, target=target, payload=handed)
    assert process.stderr is not None
    try:
        if limit:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        complaint = await _end_of(process.stderr)
        status = await process.wait()
    finally:
        await finish(_end(process))
    size = os.fstat(target).st_size
    if limit and (size > limit or (status and size == limit)):
        raise ResourceExhausted(f"{what} writes more than {limit} bytes")
    if status:
        reason = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2][-500:]
        raise FailedPrecondition(f"{what} ended with status {status}: {reason}")


async def _started(
    processor: StreamProcessor, *, media_type: str, source: int, target: int, payload: int | None
) -> asyncio.subprocess.Process:
    command = [processor.path, *processor.args]
    if payload is not None:
        # A descriptor is handed on under its own number: a shell makes it the one that programs look for.
        command = [_SHELL, "-c", 'exec 3< "$0" && exec "$@"', f"/dev/fd/{payload}", *command]
    starting = asyncio.create_subprocess_exec(
        *command,
        pass_fds=() if payload is None else (payload,),
        stdin=source,
        stdout=target,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(processor, media_type),
        start_new_session=True,
    )
    task = asyncio.create_task(starting, name=f"start stream processor {processor.id}")
    try:
        return await settle(task)
    except asyncio.CancelledError:
        # uvloop leaves a process behind whose start is cancelled.
        if not task.cancelled() and task.exception() is None:
            await finish(_end(task.result()))
        raise
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise FailedPrecondition(f"stream processor {processor.id} can't be started: {reason}") from error


def _in_memory(data: bytes) -> int:
    descriptor = os.memfd_create("payload")
    os.write(descriptor, data)
    return descriptor


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the program, if it runs, and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _environment(processor: StreamProcessor, media_type: str) -> dict[str, str]:
    own = dict(one.partition("=")[::2] for one in processor.env)
    return {"PATH": os.environ.get("PATH", os.defpath), **own, MEDIA_TYPE_VARIABLE: media_type}


async def _end_of(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while piece := await stream.read(_COMPLAINT):
        kept = (kept + piece)[-_COMPLAINT:]
    return kept
