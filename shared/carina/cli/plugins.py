"""plugin, plugins: what the constellation is made of, and what is plugged in."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import listing, output
from carina.cli.group import Group
from carina.cli.target import Target
from carina.config import PLUGIN_TYPES
from carina.errors import InvalidArgument

if TYPE_CHECKING:
    from carina.client import Client
    from carina.introspection import Plugin

SETTINGS = ("namespace", "snapshotter", "lease")


@click.group(cls=Group)
def plugins() -> None:
    """Show plugins, and plug external ones in and out."""


@plugins.command("ls")
@click.option("-d", "--detailed", is_flag=True, help="Print all about each plugin.")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, form: listing.Form, detailed: bool, filters: Sequence[str]) -> None:
    """List plugins with their state, as `ctr plugins ls` does."""

    async def work(client: "Client") -> "Sequence[Plugin]":
        from carina.introspection.client import RemoteIntrospection

        return await RemoteIntrospection(client.channel).plugins(filters)

    rows = [_row(plugin) for plugin in target.run(work)]
    if detailed and form.is_table:
        for row in rows:
            _print_details(row)
        return
    columns: dict[str, listing.Column] = {
        "TYPE": "type",
        "ID": "id",
        "PLATFORMS": lambda row: ",".join(row["platforms"]),
        "STATUS": "status",
    }
    listing.show(form, rows, columns=columns, name="name")


def _row(plugin: "Plugin") -> listing.Row:
    return listing.fields(plugin) | {
        "name": f"{plugin.type}.{plugin.id}",
        "platforms": [str(platform) for platform in plugin.platforms],
        "status": _state(plugin.error),
    }


def _print_details(row: listing.Row) -> None:
    click.echo(f"{row['name']}: {output.plain(row['status'])}")
    for word in ("requires", "platforms", "capabilities"):
        if row[word]:
            click.echo(f"  {word}: {output.plain(', '.join(row[word]))}")
    for key, value in row["exports"].items():
        click.echo(f"  exports {output.plain(key)}={output.plain(value)}")


def _state(error: str) -> str:
    if not error:
        return "ok"
    reason = error.removesuffix("skip plugin").removesuffix(": ")
    return f"error: {error}" if reason == error else f"skip: {reason}"


@plugins.command("inspect-runtime")
@click.option("--runtime", default="io.containerd.runc.v2", show_default=True, help="Its name, or the path of a shim.")
@click.option("--runtime-config-path", default="", metavar="PATH", help="Configuration file of another runtime.")
@click.pass_obj
def inspect_runtime(target: Target, runtime: str, runtime_config_path: str) -> None:
    """Show what a runtime says of itself."""
    from carina.tasks import runc

    options = runc.config(runtime_config_path) if runtime_config_path else None

    async def work(client: "Client") -> object:
        from carina.introspection.client import RemoteIntrospection
        from carina.rpc.any import describe

        return describe(await RemoteIntrospection(client.channel).runtime(runtime, options))

    output.as_json(target.run(work))


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
