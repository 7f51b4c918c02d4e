"""Starting workers, which apply and make layers: one process for each, gone with its caller.

A worker that is not waited for any more is killed; what it mounted ends with its namespace.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import carina
from carina import errors
from carina.aio.finish import finish, settle
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.layer import IMPLIED, Limits
from carina.layer.compression import OCI_LAYER, of_media_type, of_output
from carina.mount import Mount

_MAIN: Final = "import sys; sys.path[:] = sys.argv[1:]; from carina.layer.worker import main; main()"
_NO_LIMITS: Final = Limits()
_PIECE: Final = 64 << 10


class Written(NamedTuple):
    """A layer that was made."""

    digest: Digest
    size: int
    """Bytes."""
    uncompressed: Digest
    """The diff id."""


async def apply(
    blob: int, layer: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = True, limits: Limits = _NO_LIMITS
) -> Descriptor:
    """Apply the layer in the file that `blob` is open on (for reading) to the tree of `mounts`.

    A lone overlay mount is not mounted: the layer is written to its upper directory in overlay form, with whiteouts as
    overlayfs has them. An overlay mount with an `upperdir` and no `lowerdir` asks for just that form.

    Raises:
        Unimplemented, InvalidArgument, ResourceExhausted: as `carina.diff.Differ.apply` says.
        Internal: the worker died.
    """
    request = {
        "verb": "apply",
        "blob": blob,
        "kind": of_media_type(layer.media_type),
        "limits": limits._asdict(),
        "sync": sync_fs,
        **_place(mounts),
    }
    result = await _run(request, descriptor=blob, what=f"layer {layer.digest}")
    return Descriptor(
        media_type=OCI_LAYER,
        digest=Digest(result["digest"]),
        size=int(result["size"]),
        annotations={IMPLIED: json.dumps(result["implied"])} if result["implied"] else {},
    )


async def inherit(paths: Sequence[str], mounts: Sequence[Mount], below: Sequence[Mount]) -> None:
    """Give directories of the upper directory of `mounts` the owner, mode and attributes they have in `below`.

    `below` are the mounts of what the layer is put on: an overlay of lower directories, or one bind.

    Raises:
        FailedPrecondition: they are anything else.
        Internal: the worker died.
    """
    place = _place(mounts)
    lowers = [below[0].source] if len(below) == 1 and below[0].type == "bind" else _place(below)["lowers"]
    if place["form"] != "overlay" or not lowers:
        raise errors.FailedPrecondition("directories can only be inherited from the layers of an overlay")
    await _run({"verb": "inherit", **place, "lowers": lowers, "paths": list(paths)}, what="the inherited directories")


async def diff(
    output: int,
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    *,
    media_type: str = "",
    source_date_epoch: datetime | None = None,
) -> Written:
    """Write what `upper` changes on `lower` as a layer to the descriptor `output`.

    Raises:
        Unimplemented: no layer of this media type can be made.
        Aborted: a file changed meanwhile, or the reader of `output` went away.
        ResourceExhausted: the disk is full.
        Internal: the worker died.
    """
    request = {
        "verb": "diff",
        "output": output,
        "kind": of_output(media_type),
        "lower": _plain(lower),
        "upper": _plain(upper),
        "source_date_epoch": None if source_date_epoch is None else int(source_date_epoch.timestamp()) * 1_000_000_000,
    }
    result = await _run(request, descriptor=output, what="the difference of two trees")
    return Written(Digest(result["digest"]), int(result["size"]), Digest(result["uncompressed"]))


def _place(mounts: Sequence[Mount]) -> dict[str, Any]:
    if not mounts:
        raise errors.InvalidArgument("no mounts are given to apply the layer to")
    form: dict[str, Any] = {"form": "plain", "mounts": _plain(mounts), "lowers": [], "user_attributes": False}
    if len(mounts) != 1:
        return form
    options = mounts[0].options
    if mounts[0].type == "bind" and "ro" in options:
        raise errors.FailedPrecondition(f"mount {mounts[0].source} is read-only: no layer can be applied to it")
    upper = [option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")]
    if mounts[0].type != "overlay" or not upper:
        return {**form, "lowers": _lowers(options)}
    return {
        "form": "overlay",
        "root": upper[-1],
        "lowers": _lowers(options),
        "user_attributes": "userxattr" in options,
    }


def _lowers(options: Sequence[str]) -> list[str]:
    lowers = [option.removeprefix("lowerdir=") for option in options if option.startswith("lowerdir=")]
    return [path for path in lowers[-1].split(":") if path] if lowers else []


def _plain(mounts: Sequence[Mount]) -> list[tuple[str, str, str, list[str]]]:
    return [(mount.type, mount.source, mount.target, list(mount.options)) for mount in mounts]


def _paths() -> list[str]:
    """What a worker may import from: this package, the standard library, and where the compression modules are."""
    own = Path(carina.__file__).parent.parent
    import isal

    outside = Path(isal.__file__).parent.parent
    return [str(own), *(path for path in sys.path if path and not path.endswith("site-packages")), str(outside)]


async def _run(request: Mapping[str, Any], *, descriptor: int | None = None, what: str) -> dict[str, Any]:
    process = await _started(() if descriptor is None else (descriptor,))
    text = json.dumps({**request, "parent": os.getpid()}).encode()
    try:
        output, complaint = await process.communicate(text)
    except BaseException:
        await finish(_killed(process))
        raise
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise errors.Internal(f"{what}: the worker ended with status {process.returncode}: {last[-500:]}") from None
    if "error" in result:
        raise _error(result)
    return result


async def _started(descriptors: Sequence[int]) -> asyncio.subprocess.Process:
    starting = asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-c",
        _MAIN,
        *_paths(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=tuple(descriptors),
        start_new_session=True,
        env={},  # what is in ours is no concern of a process that reads what strangers wrote
    )
    task = asyncio.create_task(starting, name="start worker")
    try:
        return await settle(task)
    except asyncio.CancelledError:
        # uvloop leaves a process behind whose start is cancelled.
        if not task.cancelled() and task.exception() is None:
            await finish(_killed(task.result()))
        raise


def _error(result: Mapping[str, Any]) -> errors.CarinaError:
    kind = getattr(errors, str(result["error"]), errors.Internal)
    if not (isinstance(kind, type) and issubclass(kind, errors.CarinaError)):
        kind = errors.Internal
    found: errors.CarinaError = kind(str(result["text"]))
    return found


async def _killed(process: asyncio.subprocess.Process) -> None:
    """End a worker; its child, which the kernel kills with it, is gone too when this returns."""
    try:
        process.kill()
    except ProcessLookupError:
        pass
    await process.wait()
    assert process.stdout is not None
    assert process.stderr is not None
    for stream in (process.stdout, process.stderr):
        # Both processes hold these: they end with the last one.
        while await stream.read(_PIECE):
            pass
