"""plugin, plugins: what the constellation is made of, and what is plugged in."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import output
from carina.cli.target import Target
from carina.config import PLUGIN_TYPES
from carina.errors import InvalidArgument

if TYPE_CHECKING:
    from carina.client import Client

SETTINGS = ("namespace", "snapshotter", "lease")


@click.group()
def plugins() -> None:
    """Show plugins, and plug external ones in and out."""


@plugins.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, quiet: bool, filters: Sequence[str]) -> None:
    """List plugins with their state, as `ctr plugins ls` does."""

    async def work(client: "Client") -> list[tuple[str, str, str, str]]:
        from carina.introspection.client import RemoteIntrospection

        found = await RemoteIntrospection(client.channel).plugins(filters)
        return [(p.type, p.id, ",".join(map(str, p.platforms)) or "-", _state(p.error)) for p in found]

    found = target.run(work)
    if quiet:
        output.names(f"{type_}.{id_}" for type_, id_, _, _ in found)
        return
    output.table(("TYPE", "ID", "PLATFORMS", "STATUS"), found)


def _state(error: str) -> str:
    if not error:
        return "ok"
    reason = error.removesuffix("skip plugin").removesuffix(": ")
    return f"error: {error}" if reason == error else f"skip: {reason}"


@plugins.command("add")
@click.argument("name")
@click.option("--type", "type_", required=True, type=click.Choice(PLUGIN_TYPES))
@click.option("--address", required=True, help="unix:///path of its socket.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="namespace, snapshotter or lease over there."
)
@click.option("--platform", default="", metavar="OS/ARCH", help="What it is for; this machine's without it.")
@click.option("--export", "exports", multiple=True, metavar="KEY=VALUE", help="What it exports, if it does not say so.")
@click.option("--capability", "capabilities", multiple=True, metavar="WORD", help="What it can, if it does not say so.")
@click.pass_obj
def add(target: Target, /, name: str, type_: str, address: str, **rest: Any) -> None:
    """Plug in a back end that runs already."""
    values = output.parse_pairs(rest["settings"], "--set")
    for key in values:
        if key not in SETTINGS:
            raise InvalidArgument(f"--set {key} is not a setting: expected one of {', '.join(SETTINGS)}")

    async def work(client: "Client") -> None:
        from carina.backends import Backend
        from carina.backends.client import RemoteBackendRegistry

        backend = Backend(
            type=type_,
            name=name,
            address=address,
            platform=rest["platform"],
            exports=output.parse_pairs(rest["exports"], "--export"),
            capabilities=rest["capabilities"],
            namespace=values.get("namespace", ""),
            snapshotter=values.get("snapshotter", ""),
            lease=values.get("lease", ""),
        )
        await RemoteBackendRegistry(client.channel).add(backend)

    target.run(work)
    click.echo(name)


@plugins.command("rm")
@click.argument("name")
@click.option("--type", "type_", default="", help="Its type, if that is to be checked.")
@click.option("--force", is_flag=True, help="Forget the records of its snapshots; the back end keeps what it has.")
@click.pass_obj
def remove(target: Target, name: str, type_: str, force: bool) -> None:
    """Take a back end out that nothing needs."""

    async def work(client: "Client") -> None:
        from carina.backends.client import RemoteBackendRegistry

        await RemoteBackendRegistry(client.channel).remove(type_, name, force=force)

    target.run(work)
    click.echo(name)
