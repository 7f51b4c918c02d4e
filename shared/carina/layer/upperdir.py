"""An overlay's upper directory as the list of what changed: when it may be taken for that, and what is special in it.

Where two trees are overlays of the same directories, but for one on top of the second, everything that differs is in
that one. `difference` finds it in the mounts, and `opaque` looks through it once, before the comparison: what only the
kernel can follow there (redirected directories, files without their data, marks that are unknown here) means that both
trees are walked whole instead. An index would, too, since a file then changes without being in the upper directory:
the mount has to say that it is off.
"""

import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH: Final = 800
_NEUTRAL: Final = frozenset({"ro", "rw", "volatile", "index=off"})
"""Options that change nothing about what a tree shows of its layers."""
_UNDERSTOOD: Final = frozenset(
    {"userxattr", "redirect_dir=off", "redirect_dir=nofollow", "metacopy=off", "nfs_export=off", "xino=off"}
)
_HARMLESS: Final = frozenset({"origin", "impure", "uuid"})
"""Marks that hide nothing and lead nowhere (Documentation/filesystems/overlayfs.rst)."""


class _Stack(NamedTuple):
    layers: list[str]
    """The topmost first."""
    upper: bool
    """Whether the topmost is an upper directory."""
    words: frozenset[str]
    """Options that decide what is shown of the layers."""


def difference(lower: Sequence[Sequence[Any]], upper: Sequence[Sequence[Any]]) -> str:
    """The directory that `upper` has on top of the layers of `lower`; empty if it differs in anything else.

    Mounts are tuples of type, source, target and options. Only their words are looked at.
    """
    below, above = _stack(lower), _stack(upper)
    if below is None or above is None or above.layers[1:] != below.layers or below.upper:
        return ""
    if len(below.layers) > 1 and below.words != above.words:
        return ""
    if above.upper and "index=off" not in upper[0][3]:
        return ""
    return above.layers[0] if above.words <= _UNDERSTOOD else ""


def opaque(root: int, *, user_attributes: bool) -> frozenset[bytes] | None:
    """The paths of the opaque directories below the directory `root`; None if not everything in it is understood.

    Takes CAP_SYS_ADMIN unless `user_attributes`: without it the kernel doesn't show the marks.
    """
    found: set[bytes] = set()
    prefix = "user.overlay." if user_attributes else "trusted.overlay."
    if _marks(b"/proc/self/fd/%d" % root, prefix, follow=True) - _HARMLESS:
        return None
    return frozenset(found) if _look(root, b"", prefix=prefix, found=found) else None


def _stack(mounts: Sequence[Sequence[Any]]) -> _Stack | None:
    """The layers of one overlay, or of one bind mount; None where they can't be told."""
    if len(mounts) != 1 or mounts[0][2]:
        return None
    kind, source, _, options = mounts[0]
    if kind == "bind":
        plain = set(options) <= _NEUTRAL | {"bind", "rbind"}
        return _Stack([source], upper=False, words=frozenset()) if plain else None
    lowers = [option.removeprefix("lowerdir=") for option in options if option.startswith("lowerdir=")]
    uppers = [option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")]
    if kind != "overlay" or len(lowers) != 1 or len(uppers) > 1:
        return None
    layers = [*uppers, *lowers[0].split(":")]
    # No escapes, and no `::`, after which layers hold nothing but data.
    if not all(os.path.isabs(path) and not set(path) & set("\\,") for path in layers):
        return None
    words = {option for option in options if not option.startswith(("lowerdir=", "upperdir=", "workdir="))}
    return _Stack(layers, upper=bool(uppers), words=frozenset(words) - _NEUTRAL)


def _look(directory: int, path: bytes, *, prefix: str, found: set[bytes]) -> bool:
    """Whether everything below is understood. What is opaque is put into `found`."""
    if path.count(b"/") > _MAX_DEPTH:
        return False
    with os.scandir(directory) as entries:
        names = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in names:
        here = path + b"/" + name if path else name
        place = b"/proc/self/fd/%d/%b" % (directory, name)
        marks = _marks(place, prefix)
        if is_directory and "opaque" in marks and os.getxattr(place, prefix + "opaque", follow_symlinks=False) == b"y":
            marks.discard("opaque")
            found.add(here)
        if marks - _HARMLESS:
            return False
        if is_directory:
            child = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                if not _look(child, here, prefix=prefix, found=found):
                    return False
            finally:
                os.close(child)
    return True


def _marks(place: bytes, prefix: str, *, follow: bool = False) -> set[str]:
    names = os.listxattr(place, follow_symlinks=follow)
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
