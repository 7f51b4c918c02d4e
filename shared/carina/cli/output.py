"""How commands print: tables for people, bare names for programs.

A table fits the terminal that it is printed on; into a pipe or a file it goes whole, as `ctr` prints it.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their longest cell, as `ctr` prints them: no frame, nothing cut, easy to parse.

    On a terminal that is too narrow for that, digests are shortened, and what is still too long is folded.
    """
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headers), *cells]) for column in range(len(headers))]
    if is_terminal() and sum(widths) + 2 * (len(widths) - 1) > shutil.get_terminal_size().columns:
        from carina.cli.narrow import fit

        fit(headers, cells)
        return
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    title = "  ".join(cell.ljust(width) for cell, width in zip(headers, widths, strict=True)).rstrip()
    click.echo("\n".join([styled(title, bold=True), *lines]))


def styled(text: str, *, bold: bool = False, colour: str = "") -> str:
    """Text as a terminal shows it; as it is where there is none. NO_COLOR keeps colours away (no-color.org)."""
    if not is_terminal():
        return text
    return click.style(text, bold=bold or None, fg=colour or None if not os.environ.get("NO_COLOR") else None)


def names(values: Iterable[str]) -> None:
    for value in values:
        click.echo(plain(value))


def plain(text: str) -> str:
    """Text that may be a stranger's, with what would steer a terminal or break a line shown as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def as_json(value: object) -> None:
    click.echo(json.dumps(value, indent=4, default=_text, ensure_ascii=False))


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def labels(values: Mapping[str, str]) -> str:
    return plain(",".join(f"{key}={value}" for key, value in sorted(values.items()))) or "-"


def size(count: float) -> str:
    """Bytes in binary units, as `ctr` prints them."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def age(moment: datetime | None) -> str:
    if moment is None:
        return "-"
    return duration((datetime.now(UTC) - moment).total_seconds())


def duration(seconds: float) -> str:
    """The two largest units that matter."""
    if seconds < 60:
        return f"{max(0.0, seconds):.0f}s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m{int(seconds % 60)}s"
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60}m"
    return f"{minutes // (24 * 60)}d{minutes // 60 % 24}h"


def parse_labels(words: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` words; an empty value removes the label.

    Raises:
        click.UsageError: a word without `=`.
    """
    return parse_pairs(words, "label")


def parse_pairs(words: Sequence[str], noun: str) -> dict[str, str]:
    """Raises click.UsageError: a word is not `KEY=VALUE`."""
    parsed = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{noun} {word!r} is not of the form KEY=VALUE")
        parsed[key] = value
    return parsed


def is_terminal(stream: Any = None) -> bool:
    stream = stream or sys.stdout
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format table|json`, given to the command as `form`: for what is no list."""
    option = click.option(
        "--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True, help="For whom."
    )
    return option(command)
