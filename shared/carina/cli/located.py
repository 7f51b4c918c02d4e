"""What a configuration file is checked by, and which of its lines a message is about."""

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from carina.config import Config, daemon
from carina.errors import CarinaError

_HEADER: Final = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY: Final = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_AT: Final = re.compile(r"at line (\d+)")
_PART: Final = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


def check(config: Config) -> None:
    """Have every service read its section, as it would at its start.

    Raises:
        InvalidArgument: one of them could not be started with this file.
    """
    for service in config.services:
        name, _, snapshotter = daemon(service).partition("-")
        read = importlib.import_module(f"{name}.config").read
        read(config, snapshotter) if snapshotter else read(config)


@contextlib.contextmanager
def located(path: Path | None) -> Iterator[None]:
    """Have failures of the block say which line of the file they mean."""
    try:
        yield
    except CarinaError as error:
        if path is not None:
            error.add_note(f"file {path}")
        raise


def line_of(path: Path, message: str) -> tuple[int, str] | None:
    """The number (from 1) and text of the line that a message about the file means; None where it can't be told.

    The message names keys, with their tables before them: the line whose names are most of them is meant.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    lines = text.splitlines()
    if found := _AT.search(message):
        number = int(found[1])
        return (number, lines[number - 1]) if 0 < number <= len(lines) else None
    words = set(re.findall(r"[\w./-]+", message.replace(str(path), "").replace(".", " ")))
    best: tuple[int, int, int] | None = None
    for number, names in _named(lines):
        if names[-1] in words:
            score = sum(name in words for name in names)
            if best is None or (score, len(names)) > best[:2]:
                best = score, len(names), number
    return (best[2], lines[best[2] - 1]) if best else None


def _named(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Each line that names something, with its table's names before its own."""
    table: list[str] = []
    for number, line in enumerate(lines, 1):
        if header := _HEADER.fullmatch(line.partition("#")[0].rstrip()):
            table = _parts(header[1])
            yield number, table
        elif key := _KEY.match(line):
            yield number, [*table, *_parts(key[1])]


def _parts(text: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(text)]
