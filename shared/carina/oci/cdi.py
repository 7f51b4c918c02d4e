"""CDI, the container device interface: devices by name, as files in the machine's specification directories have them.

A device `vendor.com/class=name` stands for edits of the runtime specification. Files of later directories take
precedence over those of earlier ones; a device in two files of one directory is an error for whoever asks for it.
Format: github.com/cncf-tags/container-device-interface, SPEC.md, up to version 1.0. All of it blocks.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carina.errors import CarinaError, InvalidArgument, NotFound
from carina.linux.errnos import translated
from carina.oci.cdiedits import apply
from carina.oci.cdischema import validate, validate_name

DIRECTORIES: Final = ("/etc/cdi", "/var/run/cdi")
_MAX_FILE: Final = 16 << 20
_MAX_FILES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    name: str
    """Qualified: `vendor.com/class=name`."""
    file: Path
    edits: Mapping[str, Any]
    shared: Mapping[str, Any]
    """Edits of the file that come once with any of its devices."""


@dataclass(slots=True)
class Found:
    """What the directories hold."""

    devices: dict[str, Device]
    conflicts: dict[str, tuple[Path, Path]]
    bad: dict[Path, str]
    """Files that can't be used, and why. They concern only who asks for a device that is not found."""


def qualified(text: str) -> bool:
    """Whether it is meant as the name of a CDI device, and not as a path."""
    return not text.startswith("/") and "=" in text


def inject(spec: dict[str, Any], names: Sequence[str], directories: Sequence[str] = DIRECTORIES) -> None:
    """Change `spec` as the devices of these names have it. If it fails, nothing is changed.

    Raises:
        InvalidArgument: a name is none, a device is in two files, or what a file says can't be done.
        NotFound: there is no such device; what is wrong with files that might have it is said.
    """
    for name in names:
        validate_name(name)
    found = load(directories)
    devices = [_device(found, name, directories) for name in dict.fromkeys(names)]
    done: set[Path] = set()
    wanted: list[tuple[str, Mapping[str, Any]]] = []
    for device in devices:
        if device.file not in done:
            done.add(device.file)
            wanted.append((f"CDI file {device.file}", device.shared))
        wanted.append((f"CDI device {device.name}", device.edits))
    apply(spec, wanted)


def _device(found: Found, name: str, directories: Sequence[str]) -> Device:
    if name in found.conflicts:
        one, other = found.conflicts[name]
        raise InvalidArgument(f"CDI device {name} is in two files: {one} and {other}")
    device = found.devices.get(name)
    if device is None:
        reasons = "".join(f"; {reason}" for reason in found.bad.values())
        raise NotFound(f"CDI device {name} is in no file of {', '.join(directories)}{reasons}")
    return device


def load(directories: Sequence[str] = DIRECTORIES) -> Found:
    """Read every specification; a directory that is not there has none."""
    found = Found({}, {}, {})
    for directory in directories:
        here: dict[str, Device] = {}
        conflicts: dict[str, tuple[Path, Path]] = {}
        for path in _files(Path(directory)):
            try:
                devices = _devices(path)
            except CarinaError as error:
                found.bad[path] = str(error)
                continue
            for device in devices:
                other = here.setdefault(device.name, device)
                if other is not device:
                    conflicts[device.name] = (other.file, path)
        for name in here:
            found.conflicts.pop(name, None)
        found.devices |= here
        found.conflicts |= conflicts
    return found


def _files(directory: Path) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith((".json", ".yaml", ".yml")))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise translated(error, f"CDI directory {directory}") from error
    return [directory / name for name in names[:_MAX_FILES]]


def _devices(path: Path) -> list[Device]:
    table = _read(path)
    validate(table, f"CDI file {path}")
    shared = table.get("containerEdits") or {}
    return [
        Device(
            name=f"{table['kind']}={device['name']}", file=path, edits=device.get("containerEdits") or {}, shared=shared
        )
        for device in table["devices"]
    ]


def _read(path: Path) -> Any:
    try:
        # Not a FIFO or a device: reading one may never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not path.is_file():
                raise InvalidArgument(f"CDI file {path} is not a regular file")
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise translated(error, f"CDI file {path}") from error
    if len(data) > _MAX_FILE:
        raise InvalidArgument(f"CDI file {path} is longer than {_MAX_FILE} bytes")
    return _parsed(path, data)


def _parsed(path: Path, data: bytes) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"CDI file {path} is not JSON: {error}") from error
    import yaml  # here, since it takes long and few have such files

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(data, Loader=loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArgument(f"CDI file {path} is not YAML: {reason[:300]}") from error
