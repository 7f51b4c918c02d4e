"""Ingests as versions before the present form kept them, brought into it: plain functions that block.

    <root>/ingest/<sha256 of the ref>/    ref, data, startedat, total, expected: a file each
    <root>/ingest/<sha256 of the ref>.earlier/    the same, half-way: its name is the file's now

Cut off anywhere, it is done again at the next start, from what is left.
"""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from contentd.files import ABOUT, Layout

_MARK: Final = ".earlier"
_MOST: Final = 4096
"""Bytes that are read of a small file."""


def convert(layout: Layout) -> None:
    """Bring over what there is; what can't be understood stays as it is, for those who remove leftovers."""
    for name in os.listdir(layout.ingests):
        path = Path(layout.ingests, name)
        if path.is_dir() and "." not in name:
            away = path.with_name(name + _MARK)
            path.rename(away)
            _convert(away, path)
        elif path.is_dir() and name.endswith(_MARK):
            _convert(path, path.with_name(name.removesuffix(_MARK)))


def _convert(old: Path, new: Path) -> None:
    ref, data = _read(old / "ref"), old / "data"
    if not ref or not data.is_file():
        return
    about: dict[str, object] = {"ref": ref, "started_at": _moment(_read(old / "startedat"))}
    total, expected = _read(old / "total"), _read(old / "expected")
    if total.isdecimal():
        about["total"] = int(total)
    if expected:
        about["expected"] = expected
    new.with_name(new.name + ABOUT).write_text(json.dumps(about))
    data.rename(new)


def _read(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError), path.open("rb") as file:
        return file.read(_MOST).decode()
    return ""


def _moment(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = datetime.now(UTC)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).isoformat()
