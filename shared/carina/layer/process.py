"""Layers applied and made by workers: one process for each, gone with its caller.

A worker that is not waited for any more is killed; what it mounted ends with its namespace.
Whoever has many layers gives `workers`, which start faster than a process that is started for one layer alone.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from carina import errors
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.layer import IMPLIED, Limits
from carina.layer.compression import OCI_LAYER, of_media_type, of_output
from carina.layer.workers import DESCRIPTOR, Workers
from carina.mount import Mount

_NO_LIMITS: Final = Limits()


class Written(NamedTuple):
    """A layer that was made."""

    digest: Digest
    size: int
    """Bytes."""
    uncompressed: Digest
    """The diff id."""
    whole: bool
    """Whether both trees were walked whole, rather than an overlay's upper directory."""


async def apply(
    blob: int,
    layer: Descriptor,
    mounts: Sequence[Mount],
    *,
    sync_fs: bool = True,
    limits: Limits = _NO_LIMITS,
    workers: Workers | None = None,
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
        "blob": DESCRIPTOR,
        "kind": of_media_type(layer.media_type),
        "limits": limits._asdict(),
        "sync": sync_fs,
        **_place(mounts),
    }
    result = await _run(request, descriptor=blob, what=f"layer {layer.digest}", workers=workers)
    return Descriptor(
        media_type=OCI_LAYER,
        digest=Digest(result["digest"]),
        size=int(result["size"]),
        annotations={IMPLIED: json.dumps(result["implied"])} if result["implied"] else {},
    )


async def inherit(
    paths: Sequence[str], mounts: Sequence[Mount], below: Sequence[Mount], *, workers: Workers | None = None
) -> None:
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
    await _run(
        {"verb": "inherit", **place, "lowers": lowers, "paths": list(paths)},
        what="the inherited directories",
        workers=workers,
    )


async def diff(
    output: int,
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    *,
    media_type: str = "",
    source_date_epoch: datetime | None = None,
    workers: Workers | None = None,
) -> Written:
    """Write what `upper` changes on `lower` as a layer to the descriptor `output`.

    Where `upper` is the overlay of `lower` and one directory more, that directory tells where to look.

    Raises:
        Unimplemented: no layer of this media type can be made.
        Aborted: a file changed meanwhile, or the reader of `output` went away.
        ResourceExhausted: the disk is full.
        Internal: the worker died.
    """
    request = {
        "verb": "diff",
        "output": DESCRIPTOR,
        "kind": of_output(media_type),
        "lower": _plain(lower),
        "upper": _plain(upper),
        "source_date_epoch": None if source_date_epoch is None else int(source_date_epoch.timestamp()) * 1_000_000_000,
    }
    result = await _run(request, descriptor=output, what="the difference of two trees", workers=workers)
    return Written(Digest(result["digest"]), int(result["size"]), Digest(result["uncompressed"]), bool(result["whole"]))


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


async def _run(
    request: Mapping[str, Any], *, descriptor: int | None = None, what: str, workers: Workers | None
) -> dict[str, Any]:
    if workers is None:
        async with Workers() as own:
            return await _run(request, descriptor=descriptor, what=what, workers=own)
    answer = await workers.run(json.dumps(request).encode(), descriptor)
    try:
        result: dict[str, Any] = json.loads(answer.output)
    except ValueError:
        last = answer.complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise errors.Internal(f"{what}: the worker ended before its work was done: {last[-500:]}") from None
    if "error" in result:
        raise _error(result)
    return result


def _error(result: Mapping[str, Any]) -> errors.CarinaError:
    kind = getattr(errors, str(result["error"]), errors.Internal)
    if not (isinstance(kind, type) and issubclass(kind, errors.CarinaError)):
        kind = errors.Internal
    found: errors.CarinaError = kind(str(result["text"]))
    return found
