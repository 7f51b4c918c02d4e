"""Control groups of a process: which directories, in either version, and what their files say."""

import os
from collections.abc import Mapping
from typing import Final

UNIFIED: Final = ""
"""The key of version 2 among the paths."""
ROOT: Final = "/sys/fs/cgroup"


def paths(pid: int) -> dict[str, str]:
    """Controller -> directory for version 1; `UNIFIED` alone for version 2. Empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            mounts = _mounts(file.read())
    except (OSError, ValueError):
        return {}
    found = {}
    for _, controllers, path in lines:
        for controller in controllers.split(","):
            if controller in mounts:
                root, point = mounts[controller]
                found[controller] = os.path.join(point, path.removeprefix(root).lstrip("/"))
    if len(found) > 1:
        # Version 1, where version 2 is mounted beside it at the most, without controllers.
        found.pop(UNIFIED, None)
    return found


def _mounts(text: str) -> dict[str, tuple[str, str]]:
    """Controller -> root within the hierarchy, and mount point."""
    found = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(" "), "", "")[:3]
        words = before.split(" ")
        if kind == "cgroup2":
            found[UNIFIED] = words[3].rstrip("/"), words[4]
        elif kind == "cgroup":
            for option in options.split(","):
                found[option] = words[3].rstrip("/"), words[4]
    return found


def read(directory: str, name: str) -> str:
    """Empty where there is no such file."""
    try:
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def number(directory: str, name: str) -> int:
    """0 where there is none; the highest there is for `max`."""
    text = read(directory, name).strip()
    if text == "max":
        return 2**64 - 1
    return int(text) if text.lstrip("-").isdigit() else 0


def table(directory: str, name: str) -> Mapping[str, int]:
    """A file with a name and a number in each line."""
    pairs = (line.split() for line in read(directory, name).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def processes(found: Mapping[str, str]) -> list[int]:
    """Every process in the group and in those below it."""
    known = (UNIFIED, "pids", "devices", "memory", "name=systemd")
    directory = next((found[name] for name in known if name in found), "")
    pids: list[int] = []
    for parent, _, _ in os.walk(directory) if directory else ():
        pids += [int(line) for line in read(parent, "cgroup.procs").split()]
    return pids
