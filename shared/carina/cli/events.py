"""events: what happened, and what happens."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from carina.cli.output import plain
from carina.cli.target import Target
from carina.errors import InvalidArgument, Unimplemented
from carina.events import Cursor, Edge, Envelope, Start

if TYPE_CHECKING:
    from carina.client import Client

_DURATION: Final = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?")


@click.command()
@click.argument("filters", nargs=-1)
@click.option(
    "--since",
    metavar="PLACE",
    help="Begin after an event (its number or cursor), some time ago (1h30m), at a moment (2026-01-02T03:04:05Z), "
    "or with the `oldest` that is kept.",
)
@click.option("--follow/--no-follow", default=True, help="Go on with what happens, or end with what has happened.")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="For whom."
)
@click.pass_obj
def events(target: Target, filters: Sequence[str], since: str | None, follow: bool, form: str) -> None:
    """Print events of every namespace, those that match one of FILTERS.

    From now on; with --no-follow, all that are kept. The service may restart meanwhile: nothing is missed.
    """
    start = parse_start(since) if since is not None else Edge.NOW if follow else Edge.OLDEST

    async def work(client: "Client") -> None:
        show = _line if form == "text" else _json
        async for cursor, envelope in _events(client, start, filters, follow=follow):
            click.echo(show(cursor, envelope))

    target.run(work, deadline=None)


def parse_start(text: str) -> Start:
    """Raises InvalidArgument."""
    if text == "oldest":
        return Edge.OLDEST
    duration = _DURATION.fullmatch(text)
    if text and duration is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in duration.groups())
        return datetime.now(UTC) - timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    try:
        return Cursor.parse(text)
    except InvalidArgument:
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{text[:80]!r} is no place in the log of events: expected a number, a cursor LOG:NUMBER, "
            "a duration such as 1h30m, a moment such as 2026-01-02T03:04:05Z, or `oldest`"
        ) from None


async def _events(
    client: "Client", start: Start, filters: Sequence[str], *, follow: bool
) -> AsyncIterator[tuple[Cursor | None, Envelope]]:
    from carina.events.follow import follow as followed

    log = client.event_log
    entries = followed(log, start, filters) if follow else log.read(start, filters, follow=False)
    try:
        async for entry in entries:
            if entry.envelope is not None:
                yield entry.cursor, entry.envelope
        return
    except Unimplemented:
        if start is not Edge.NOW:
            raise
    async for envelope in client.events.subscribe(filters):  # a containerd has no log
        yield None, envelope


def _line(cursor: Cursor | None, envelope: Envelope) -> str:
    payload = json.dumps(_payload(envelope), default=str)
    return plain(f"{envelope.timestamp.isoformat()} {envelope.namespace} {envelope.topic} {payload}")


def _json(cursor: Cursor | None, envelope: Envelope) -> str:
    shown = {
        "cursor": None if cursor is None else str(cursor),
        "timestamp": envelope.timestamp.isoformat(),
        "namespace": envelope.namespace,
        "topic": envelope.topic,
        "type": envelope.event.type_url,
        "event": _payload(envelope),
    }
    return json.dumps(shown, default=str)


def _payload(envelope: Envelope) -> Any:
    from carina.rpc.any import describe

    return describe(envelope.event)
