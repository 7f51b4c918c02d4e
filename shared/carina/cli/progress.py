"""The progress of a transfer: a line per object redrawn on a terminal, a line per step elsewhere, or JSON.

On a terminal each object shows how much of it is there, at what rate it moves, and how long that will take.
As JSON, each step is one line with the words of the Transfer service, for programs.
"""

import json
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import click

from carina.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from carina.transfer import Progress

DONE: Final = frozenset({"complete", "saved", "exists", "already exists", "unpacked", "extracted"})
PENDING: Final = frozenset({"waiting"})
"""Nothing has happened yet: worth a bar, not a line."""


class Display:
    """Shows what `update` is told, until the block ends."""

    def __init__(self, *, quiet: bool, live: bool, as_json: bool = False) -> None:
        self._quiet = quiet
        self._json = as_json
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        if live and not quiet and not as_json:
            self._bars = _bars()

    def update(self, progress: "Progress") -> None:
        if self._quiet:
            return
        if self._json:
            click.echo(_json(progress))
        elif progress.name and self._bars is not None:
            self._draw(progress, self._bars)
        elif progress.name:
            self._say(progress)

    def _say(self, progress: "Progress") -> None:
        if self._said.get(progress.name) != progress.event and progress.event not in PENDING:
            self._said[progress.name] = progress.event
            size = f"  {output.size(progress.total)}" if progress.total else ""
            click.echo(f"{_short(progress.name)}: {progress.event}{size}")

    def _draw(self, progress: "Progress", bars: "Bars") -> None:
        if progress.name not in self._tasks:
            self._tasks[progress.name] = bars.add_task(_short(progress.name), total=None, event="")
        task = self._tasks[progress.name]
        total = progress.total or None
        if self._said.get(progress.name) != progress.event:
            self._said[progress.name] = progress.event
            if progress.event not in DONE:
                bars.reset(task, total=total, event=progress.event)  # what another step moved is not this one's rate
        completed = progress.total if progress.event in DONE else progress.progress
        bars.update(task, event=progress.event, total=total, completed=completed)

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()


def _bars() -> "Bars":
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[event]}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )


def _json(progress: "Progress") -> str:
    found: dict[str, object] = {"event": progress.event, "name": progress.name}
    if progress.parents:
        found["parents"] = progress.parents
    if progress.total:
        found |= {"progress": progress.progress, "total": progress.total}
    if progress.descriptor is not None:
        one = progress.descriptor
        found["descriptor"] = {"mediaType": one.media_type, "digest": one.digest, "size": one.size}
    return json.dumps(found)


def _short(name: str) -> str:
    """`layer-sha256:<64 hex>` with 12 digits of it."""
    head, colon, digest = name.rpartition(":")
    return output.plain(f"{head}:{digest[:12]}" if colon and len(digest) >= 64 else name)
