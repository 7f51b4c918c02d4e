"""check: what is recorded against what is stored."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from carina.cli import output
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.check import Finding, Options, Summary, Unchecked
    from carina.client import Client

UNCHECKED: Final = 3
"""Exit status where nothing was found wrong, and not everything could be looked at."""


@click.command()
@click.option("--repair", is_flag=True, help="Put right what can be, without removing what anything refers to.")
@click.option("--remove-orphans", is_flag=True, help="With --repair: remove from our own stores what nothing records.")
@click.option("--rehash/--no-hash", "hash", default=True, show_default=True, help="Read all content again.")
@output.format_option
@click.pass_obj
def check(target: Target, repair: bool, remove_orphans: bool, hash: bool, form: str) -> None:
    """Compare all records with the stores, both ways, while everything is in use.

    Exit status: 0 all is right, 1 something is wrong (what was put right does not count),
    3 nothing was found wrong, but not everything could be looked at.
    """
    from carina.check import Options
    from carina.errors import CarinaError

    if remove_orphans and not repair:
        raise click.UsageError("--remove-orphans needs --repair")
    results = _Results()
    try:
        target.run(
            lambda client: _collect(client, Options(repair=repair, hash=hash, remove_orphans=remove_orphans), results),
            deadline=None,
        )
    except CarinaError as error:
        click.echo(f"carina: {output.plain(str(error))}", err=True)
        results.broken = True
    if form == "json":
        _as_json(results)
    else:
        _as_table(results)
    if any(not finding.settled for finding in results.findings):
        raise click.exceptions.Exit(1)
    if results.unchecked or results.broken:
        raise click.exceptions.Exit(UNCHECKED)


class _Results:
    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.unchecked: list[Unchecked] = []
        self.summary: Summary | None = None
        self.broken = False


async def _collect(client: "Client", options: "Options", results: _Results) -> None:
    from carina.check import Finding, Unchecked
    from carina.check.client import RemoteChecker

    async for result in RemoteChecker(client.channel).check(options):
        if isinstance(result, Finding):
            results.findings.append(result)
        elif isinstance(result, Unchecked):
            results.unchecked.append(result)
        else:
            results.summary = result


def _as_json(results: _Results) -> None:
    output.as_json(
        {
            "findings": [asdict(finding) for finding in results.findings],
            "unchecked": [asdict(part) for part in results.unchecked],
            "summary": asdict(results.summary) if results.summary else None,
        }
    )


def _as_table(results: _Results) -> None:
    if results.findings:
        output.table(
            ("WRONG", "NAMESPACE", "TYPE", "OBJECT", "DETAIL", "DONE"),
            [(f.kind, f.namespace or "-", f.type, f.id, f.detail or "-", f.done or "-") for f in results.findings],
        )
    for part in results.unchecked:
        click.echo(f"not checked: {output.plain(part.name)}: {output.plain(part.reason)}")
    done = results.summary
    if done is not None:
        click.echo(
            f"{len(results.findings)} findings; compared {done.content} records of content, {done.snapshots} of "
            f"snapshots and the references of {done.records} records; read {done.hashed} blobs again, "
            f"{output.size(done.hashed_bytes)}"
        )
