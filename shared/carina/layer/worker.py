"""The process that applies or makes one layer: `main` runs in a fork of the nursery, which nothing else has run in.

The process gets a request in JSON on standard input and writes one line of result to standard output.
It enters a mount namespace of its own, so that whatever it mounts ends with it.
To apply a layer it forks: the child changes its root to the tree, where no device can be opened and nothing executed,
drops what privileges, system calls, network, descriptors and memory it can, and parses what strangers wrote;
the parent only answers the few questions of `broker.py`.
Before the child changes its root, importing is switched off: a module found in an image would run in it.
"""

import json
import os
import resource
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from carina.errors import CarinaError, FailedPrecondition, Internal, PermissionDenied, ResourceExhausted
from carina.layer import Limits
from carina.layer.apply import Applier
from carina.layer.broker import Asking, Broker
from carina.layer.compression import decompressed
from carina.layer.feed import Feed
from carina.layer.tar import Reader
from carina.linux import confine, seccomp
from carina.linux.libc import call

NAME: Final = "carina-layer"
"""What process lists call a worker."""
_PLACE: Final = "/sys"
"""Covered by an empty file system, in the private namespace, to mount trees in: no layer or snapshot is below it."""
_APPLIER: Final = (
    confine.CHOWN,
    confine.DAC_OVERRIDE,
    confine.FOWNER,
    confine.FSETID,
    confine.MKNOD,
    confine.SETFCAP,
)
_COMPARER: Final = (confine.DAC_READ_SEARCH,)
_APPLIER_CALLS: Final = seccomp.RUNTIME | seccomp.LOOK | seccomp.CHANGE | seccomp.TALK
_COMPARER_CALLS: Final = seccomp.RUNTIME | seccomp.LOOK
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_DESCRIPTORS: Final = 4096
_SEALED: Final = ("nodev", "nosuid", "noexec")
_ERRORS: Final = 2
_MAX_IMPLIED: Final = 16 << 10
"""Characters of the paths of implied directories, six bytes each at the most, which go through the channel at once."""


def main(parent: int) -> None:
    """Do what the request on standard input says, and leave without the interpreter's ceremony."""
    confine.die_with_parent(parent)
    confine.set_name(NAME)
    os.umask(0)
    try:
        request = json.loads(sys.stdin.buffer.read())
        result = {"apply": _apply, "diff": _diff, "inherit": _inherit}[request["verb"]](request)
    except BaseException as error:  # the process that started this one raises it
        result = _failure(error)
    _finish(result, 1)


def _finish(result: bytes, descriptor: int) -> None:
    while result:
        result = result[os.write(descriptor, result) :]
    os._exit(0)


def _failure(error: BaseException) -> bytes:
    kind, text = type(error), str(error)
    if isinstance(error, MemoryError):
        kind, text = ResourceExhausted, "the layer takes more memory than its limit"
    elif not isinstance(error, CarinaError):
        kind, text = Internal, f"the worker failed: {type(error).__name__}: {error}"
    while kind.__module__ != CarinaError.__module__:
        kind = kind.__base__  # type: ignore[assignment]  # every class of ours ends there
    return json.dumps({"error": kind.__name__, "text": text[:4096]}).encode()


def _apply(request: dict[str, Any]) -> bytes:
    overlay = request["form"] == "overlay"
    mounts = [("bind", request["root"], "", ["rbind", "rw"])] if overlay else request["mounts"]
    root = os.open(_tree(mounts, "upper", options=_SEALED), _DIRECTORY)
    lowers = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in request["lowers"]]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    size = 256 << 10
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        for lower in lowers:
            os.close(lower)
        _child(request, root, theirs, parent)
    theirs.close()
    os.close(request["blob"])
    result = Broker(lowers=lowers, user_attributes=request["user_attributes"]).serve(ours)
    _, status = os.waitpid(child, 0)
    if not result or status:
        raise Internal(f"the worker ended with status {os.waitstatus_to_exitcode(status)} before the layer was applied")
    if request["sync"] and "error" not in json.loads(result):
        call("syncfs", root)
    return result


def _inherit(request: dict[str, Any]) -> bytes:
    root = os.open(request["root"], _DIRECTORY)
    lowers = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in request["lowers"]]
    broker = Broker(lowers=lowers, user_attributes=request["user_attributes"])
    broker.inherit_all(root, [os.fsencode(path) for path in request["paths"]])
    return b"{}"


def _child(request: dict[str, Any], root: int, channel: socket.socket, parent: int) -> None:
    result = b""
    try:
        confine.die_with_parent(parent)
        chunks = decompressed(request["blob"], request["kind"])
        _close_all_but(_ERRORS, root, channel.fileno(), request["blob"])
        limits = Limits(**request["limits"])
        _confine(root, has_root=os.geteuid() == 0, limits=limits)
        result = _applied(chunks, request, root=root, channel=channel, limits=limits)
    except BaseException as error:  # the parent hands it on
        result = _failure(error)
    channel.send(result)
    os._exit(0)


def _applied(
    chunks: Iterator[bytes], request: dict[str, Any], *, root: int, channel: socket.socket, limits: Limits
) -> bytes:
    feed = Feed(chunks, compressed=os.fstat(request["blob"]).st_size, limits=limits)
    feed.start()
    reader = Reader(feed.pull)
    overlay = request["form"] == "overlay"
    asking = Asking(channel, below=bool(request["lowers"]))
    applier = Applier(root, overlay=overlay, privileges=asking, limits=limits)
    applier.run(reader)
    reader.drain()
    result = {"digest": f"sha256:{feed.hexdigest()}", "size": feed.size}
    implied = [] if request["lowers"] else [os.fsdecode(path) for path in applier.implied]
    if sum(map(len, implied)) > _MAX_IMPLIED:
        raise FailedPrecondition("the layer leaves too many directories to the layers below, which are not there")
    return json.dumps({**result, "implied": implied}).encode()


def _close_all_but(*kept: int) -> None:
    """Whoever started the process may have left it more descriptors than it knows of."""
    first = 0
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(first, most)


def _limit(limits: Limits) -> None:
    if limits.memory:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))


def _confine(root: int, *, has_root: bool, limits: Limits) -> None:
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    if limits.bytes:
        # Also of a sparse file, which has no such bytes in the stream.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.bytes, limits.bytes))
    if has_root:
        confine.leave_network()
        os.fchdir(root)
        os.chroot(".")
        confine.keep_capabilities(_APPLIER)
    _limit(limits)
    seccomp.allow_only(_APPLIER_CALLS)


def _tree(mounts: Sequence[Sequence[Any]], name: str, *, options: Sequence[str]) -> str:
    """Where the tree of these mounts is, which are mounted with `options` besides their own.

    A lone bind mount is not mounted where that takes privileges that we do not have.
    """
    lone: str = mounts[0][1] if len(mounts) == 1 and mounts[0][0] == "bind" and not mounts[0][2] else ""
    try:
        return _mounted(mounts, name, options=options)
    except PermissionDenied:
        if not lone:
            raise
        return lone


def _mounted(mounts: Sequence[Sequence[Any]], name: str, *, options: Sequence[str]) -> str:
    from carina.linux.mount import mount_all, unshare_mounts
    from carina.mount import Mount

    if not os.path.exists(f"{_PLACE}/.carina"):
        unshare_mounts()
        mount_all([Mount(type="tmpfs", source="carina", options=("mode=0700", "size=64k"))], _PLACE)
        os.mkdir(f"{_PLACE}/.carina")
    place = f"{_PLACE}/{name}"
    os.mkdir(place)
    mount_all([Mount(type=t, source=s, target=p, options=(*o, *options)) for t, s, p, o in mounts], place)
    return place


def _diff(request: dict[str, Any]) -> bytes:
    from carina.layer.compare import changes
    from carina.layer.writer import LayerWriter

    lower = os.open(_tree(request["lower"], "lower", options=("ro",)), _DIRECTORY) if request["lower"] else None
    upper = os.open(_tree(request["upper"], "upper", options=("ro",)), _DIRECTORY)
    only, opaque = _changed(request["lower"], request["upper"])
    layer = LayerWriter(request["output"], kind=request["kind"], latest=request["source_date_epoch"])
    if os.geteuid() == 0:
        confine.leave_network()
        confine.keep_capabilities(_COMPARER)
    _limit(Limits())
    seccomp.allow_only(_COMPARER_CALLS)
    result = layer.write(changes(lower, upper, only=only, opaque=opaque))
    return json.dumps({**result, "whole": only is None}).encode()


def _changed(lower: Sequence[Sequence[Any]], upper: Sequence[Sequence[Any]]) -> tuple[int | None, frozenset[bytes]]:
    """A descriptor of the directory that has every change in it, and what is opaque there; None if there is none."""
    from carina.layer import upperdir

    path = upperdir.difference(lower, upper)
    if not path:
        return None, frozenset()
    # As overlayfs sees it: without what may be mounted below. Where nothing can be mounted, nothing was up to here.
    only = os.open(_tree([("bind", path, "", ["bind"])], "only", options=("ro",)), _DIRECTORY)
    opaque = upperdir.opaque(only, user_attributes="userxattr" in upper[0][3])
    if opaque is None:
        os.close(only)
        return None, frozenset()
    return only, opaque
