"""Mount options as in fstab(5), sorted into what mount(2) takes as flags and what the file system takes as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from carina.errors import InvalidArgument, Unimplemented

RDONLY: Final = 1
NOSUID: Final = 2
NODEV: Final = 4
NOEXEC: Final = 8
REMOUNT: Final = 32
NOATIME: Final = 1024
NODIRATIME: Final = 2048
BIND: Final = 4096
REC: Final = 16384
PRIVATE: Final = 1 << 18

_SET: Final = {
    "ro": RDONLY,
    "nosuid": NOSUID,
    "nodev": NODEV,
    "noexec": NOEXEC,
    "sync": 16,
    "remount": REMOUNT,
    "mand": 64,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": NOATIME,
    "nodiratime": NODIRATIME,
    "bind": BIND,
    "rbind": BIND | REC,
    "silent": 32768,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
_CLEAR: Final = {
    "rw": RDONLY,
    "suid": NOSUID,
    "dev": NODEV,
    "exec": NOEXEC,
    "async": 16,
    "nomand": 64,
    "symfollow": 256,
    "atime": NOATIME,
    "diratime": NODIRATIME,
    "loud": 32768,
    "norelatime": 1 << 21,
    "nostrictatime": 1 << 24,
    "nolazytime": 1 << 25,
}
_PROPAGATION: Final = {
    "unbindable": 1 << 17,
    "private": PRIVATE,
    "slave": 1 << 19,
    "shared": 1 << 20,
}
_UNSUPPORTED: Final = ("loop",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a list of options asks for."""

    flags: int = 0
    propagation: int = 0
    """Flags of a second call: mount(2) changes propagation only alone."""
    data: tuple[str, ...] = ()
    """Options that are the file system's own, in their order."""
    uid_map: str = ""
    gid_map: str = ""
    """Who owns what in an id-mapped mount; both or none."""

    @property
    def is_bind(self) -> bool:
        return bool(self.flags & BIND)

    @property
    def text(self) -> str:
        return ",".join(self.data)


def parse(options: Sequence[str]) -> Options:
    """Sort options. Those with the prefixes `x-`, `X-` are notes between programs, as mount(8) has it, and dropped.

    Raises:
        Unimplemented: `loop`.
        InvalidArgument: only one of `uidmap` and `gidmap` is given.
    """
    flags = propagation = 0
    data: list[str] = []
    maps = {"uidmap": "", "gidmap": ""}
    for option in options:
        if option in ("", "defaults") or option.startswith(("x-", "X-")):
            continue
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option[:1] == "r" and option[1:] in _PROPAGATION:
            propagation = _PROPAGATION[option[1:]] | REC
        elif option.startswith(_UNSUPPORTED):
            raise Unimplemented(f"mount option {option!r}: not built")
        elif (key := option.partition("=")[0]) in maps:
            maps[key] = option.partition("=")[2]
        else:
            data.append(option)
    if bool(maps["uidmap"]) != bool(maps["gidmap"]):
        raise InvalidArgument("mount options uidmap and gidmap belong together: one of them is missing")
    return Options(
        flags=flags,
        propagation=propagation,
        data=tuple(data),
        uid_map=maps["uidmap"],
        gid_map=maps["gidmap"],
    )
