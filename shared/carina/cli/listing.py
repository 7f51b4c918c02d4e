"""Lists: as a table, as JSON, by a template, or as bare names. Every list of the command line is printed here.

    @images.command("ls")
    @listing.options
    def list_(target, form, ...):
        listing.show(form, rows, columns={"REF": "name", "SIZE": lambda row: output.size(row["size"])}, name="name")

A row is a mapping: its keys are what JSON and templates show.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from carina.cli import output

Row = Mapping[str, Any]
Column = str | Callable[[Row], object]
"""A key of the row, or what to show of it."""


@dataclass(frozen=True, slots=True)
class Form:
    """How to print: `table`, `json`, or a template."""

    text: str = "table"
    quiet: bool = False

    @property
    def is_json(self) -> bool:
        return self.text == "json" and not self.quiet

    @property
    def is_table(self) -> bool:
        return self.text == "table" and not self.quiet


class _Format(click.ParamType[str]):
    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text in ("table", "json") or "{{" in text or "{%" in text:
            return text
        raise click.BadParameter(
            f"{text!r} is not a format: expected table, json, or a template such as '{{{{name}}}}'", ctx, param
        )

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in ("table", "json") if word.startswith(incomplete)]


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format` and `-q`, given to the command together as `form`."""
    import functools

    @functools.wraps(command)
    def with_form(*args: Any, form: str, quiet: bool, **rest: Any) -> Any:
        return command(*args, form=Form(form, quiet), **rest)

    return format_option(click.option("-q", "--quiet", is_flag=True, help="Print names only.")(with_form))


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format` alone, given to the command as `form`."""
    option = click.option(
        "--format", "form", type=_Format(), default="table", show_default=True, help="table, json, or a template."
    )
    return option(command)


def show(form: Form, rows: Iterable[Row], *, columns: Mapping[str, Column], name: str) -> None:
    """Print `rows`; `name` is the key of what -q prints."""
    found = list(rows)
    if form.quiet:
        output.names(str(row[name]) for row in found)
    elif form.text == "table":
        output.table(list(columns), [[_cell(row, column) for column in columns.values()] for row in found])
    else:
        as_asked(form.text, [plain(row) for row in found])


def as_asked(text: str, rows: Sequence[Any]) -> None:
    """Print rows of plain values as JSON, or each by a template."""
    if text == "json":
        output.as_json(rows)
        return
    from carina.cli.template import render

    for row in rows:
        click.echo(render(text, row))


def _cell(row: Row, column: Column) -> object:
    value = row[column] if isinstance(column, str) else column(row)
    if value is None or value == "":
        return "-"
    return output.labels(value) if isinstance(value, Mapping) else value


def fields(record: Any) -> dict[str, Any]:
    """A record as a row."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def plain(value: Any) -> Any:
    """What JSON can say: records become mappings, enumerations their names, moments RFC 3339."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
