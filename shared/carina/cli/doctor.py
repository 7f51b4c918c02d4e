"""doctor: what is wrong with this machine, and what to do about it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import click

from carina import config as configuration
from carina.cli import listing, output
from carina.cli.diagnosis import FAIL, OK, WARN, Finding, about_machine, about_runtime
from carina.cli.target import Target
from carina.config import Config, daemon, socket_path
from carina.errors import CarinaError

SECONDS = 3.0
"""For a service to answer."""
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


@click.command()
@listing.options
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Directory of everything that lasts.")
@click.option("--state", type=click.Path(path_type=Path), metavar="DIR", help="Directory of sockets and bundles.")
@click.pass_obj
def doctor(target: Target, form: listing.Form, file: Path | None, root: Path | None, state: Path | None) -> None:
    """Look for what is wrong with this machine, and say what to do.

    Nothing is changed. Exit status: 1 where a line says `fail`, 0 otherwise. -q names only what is not ok.
    """
    if target.address and not (state or file):
        state = socket_path(target.address).parent
    found = list(_all(file, root, state))
    if form.is_table:
        for finding in found:
            _print(finding)
        counts = {status: sum(finding.status == status for finding in found) for status in (OK, WARN, FAIL)}
        click.echo(f"{counts[OK]} ok, {counts[WARN]} warnings, {counts[FAIL]} failures")
    else:
        rows = [listing.fields(finding) for finding in found if not form.quiet or finding.status != OK]
        listing.show(form, rows, columns={}, name="subject")
    if any(finding.status == FAIL for finding in found):
        raise click.exceptions.Exit(1)


def _print(finding: Finding) -> None:
    status = output.styled(f"{finding.status:4}", colour=_COLOURS[finding.status])
    click.echo(f"{status}  {finding.subject}: {output.plain(finding.text)}")
    if finding.todo:
        click.echo(f"      {output.plain(finding.todo)}")


def _all(file: Path | None, root: Path | None, state: Path | None) -> Iterator[Finding]:
    config: Config | None = None
    try:
        config = configuration.load(file, root=root, state=state)
        from carina.cli.located import check

        check(config)
        yield Finding(OK, "configuration", str(config.path or "defaults, there is no file"))
    except CarinaError as error:
        yield Finding(FAIL, "configuration", str(error), "`carina config check` shows the line.")
    yield from about_machine(config or Config(root=root or configuration.DEFAULT_ROOT), configuration.DEFAULT_PATH)
    yield from about_runtime()
    if config is not None:
        yield from asyncio.run(_services(config))


async def _services(config: Config) -> list[Finding]:
    return list(await asyncio.gather(*(_service(name, address) for name, address in config.services.items())))


async def _service(service: str, address: str) -> Finding:
    from carina import context
    from carina.rpc.client import connect
    from carina.rpc.health import probe

    name, path = daemon(service), socket_path(address)
    try:
        if not await asyncio.to_thread(path.exists):
            return Finding(WARN, name, f"not running: there is no {path}", "`carina up --detach` starts Carina.")
    except PermissionError:
        return Finding(WARN, name, f"{path} is not yours to see", "Try again as root.")
    channel = connect(address)
    try:
        with context.deadline(SECONDS):
            health, version = await probe(channel)
    except CarinaError as error:
        return Finding(FAIL, name, str(error), f"`carina logs {name}` shows what it said last.")
    finally:
        channel.close()
    if health != "ok":
        return Finding(FAIL, name, f"answers that it is {health}", f"`carina logs {name}` shows why.")
    mode = (await asyncio.to_thread(path.stat)).st_mode & 0o777
    if mode & 0o006:
        todo = f"chmod o= {path}, and see `group` in [gateway]."
        return Finding(FAIL, name, f"{path} is open to everybody (mode {mode:04o}): who connects becomes root", todo)
    return Finding(OK, name, f"answers, version {version}")
