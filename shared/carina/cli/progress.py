"""The progress of a pull: a line per object redrawn on a terminal, a line per step elsewhere."""

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

    def __init__(self, *, quiet: bool, live: bool) -> None:
        self._quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        if live and not quiet:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                TextColumn("{task.fields[event]}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
            )

    def update(self, progress: "Progress") -> None:
        if self._quiet or not progress.name:
            return
        if self._bars is None:
            if self._said.get(progress.name) != progress.event and progress.event not in PENDING:
                self._said[progress.name] = progress.event
                size = f"  {output.size(progress.total)}" if progress.total else ""
                click.echo(f"{_short(progress.name)}: {progress.event}{size}")
            return
        if progress.name not in self._tasks:
            self._tasks[progress.name] = self._bars.add_task(_short(progress.name), total=None, event="")
        total = progress.total or None
        completed = progress.total if progress.event in DONE else progress.progress
        self._bars.update(self._tasks[progress.name], event=progress.event, total=total, completed=completed)

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()


def _short(name: str) -> str:
    """`layer-sha256:<64 hex>` with 12 digits of it."""
    head, colon, digest = name.rpartition(":")
    return f"{head}:{digest[:12]}" if colon and len(digest) >= 64 else name
