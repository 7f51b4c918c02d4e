"""pull: an image from a registry into the image store, unpacked."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.complete import names
from carina.cli.registry import Registry
from carina.cli.registry import options as registry_options
from carina.cli.target import Target
from carina.platforms import Platform
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client


@click.command()
@click.argument("reference")
@click.option(
    "--snapshotter",
    envvar="CARINA_SNAPSHOTTER",
    default="overlayfs",
    show_default=True,
    shell_complete=names("snapshotters"),
)
@click.option("--platform", "platforms", multiple=True, help="OS/ARCH[/VARIANT]; this machine's where absent.")
@click.option("--all-platforms", is_flag=True, help="Fetch every platform of the image; unpack this machine's.")
@registry_options
@click.option("--no-unpack", is_flag=True, help="Fetch only.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the image record.")
@click.option("--all-metadata", is_flag=True, help="Fetch manifests and configurations of every platform.")
@click.option("--print-chainid", is_flag=True, help="Print the key of the top snapshot.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's name only.")
@click.option("--json", "as_json", is_flag=True, help="Print each step as a line of JSON.")
@click.pass_obj
def pull(
    target: Target,
    reference: str,
    registry: Registry,
    snapshotter: str,
    platforms: Sequence[str],
    all_platforms: bool,
    all_metadata: bool,
    no_unpack: bool,
    labels: Sequence[str],
    print_chainid: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pull an image from a registry and unpack it."""
    from carina import platforms as platform
    from carina.cli.progress import Display
    from carina.transfer import Store, Unpack

    name = str(normalize(reference))
    wanted = [] if all_platforms else [Platform.parse(text) for text in platforms] or [platform.host()]
    unpacked = [] if no_unpack or target.embedded else wanted or [platform.host()]
    into = Store(
        name=name,
        labels=output.parse_labels(labels),
        platforms=tuple(wanted),
        all_metadata=all_metadata,
        unpacks=tuple(Unpack(platform=one, snapshotter=snapshotter) for one in unpacked),
    )
    display = Display(quiet=quiet, live=output.is_terminal(), as_json=as_json)
    started = time.monotonic()

    async def work(client: "Client") -> str:
        await client.transfer.fetch(name, into, access=access, on_progress=display.update)
        return await _chain_id(client, name) if print_chainid else ""

    with registry.access(name) as access, display:
        chain = target.run(work, deadline=None)
    if not as_json:
        click.echo(name if quiet else f"{name}: pulled in {time.monotonic() - started:.1f} s")
    if print_chainid:
        click.echo(f"image chain ID: {chain}")


async def _chain_id(client: "Client", name: str) -> str:
    from carina.client.image import describe
    from carina.images.manifest import chain_ids

    described = await describe(client.content, await client.images.get(name))
    return str(chain_ids(described.config.diff_ids)[-1]) if described.config.diff_ids else "-"
