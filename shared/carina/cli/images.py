"""images: the image records of a namespace."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from carina import context
from carina.cli import complete, listing, output
from carina.cli.archive import export, import_
from carina.cli.group import Group
from carina.cli.pull import pull
from carina.cli.push import push_to
from carina.cli.referrers import referrers
from carina.cli.target import DEADLINE, Target
from carina.cli.usage import usage
from carina.images import Image
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client


LOOKUPS: Final = 8
"""Images whose manifests are read at a time."""


@click.group(cls=Group, aliases={"inspect": "tree"})
def images() -> None:
    """Manage images."""


for name, command in (
    ("pull", pull),
    ("push", push_to),
    ("import", import_),
    ("export", export),
    ("usage", usage),
    ("referrers", referrers),
):
    images.add_command(command, name)


@images.command("ls")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, form: listing.Form, filters: Sequence[str]) -> None:
    """List images; FILTERS as in containerd's filter language."""

    async def work(client: "Client") -> list[tuple[Image, int]]:
        with context.deadline(DEADLINE):
            found = await client.images.list(filters)
        sizes = {} if form.quiet else await _sizes(client, found)
        return [(image, sizes.get(image.target.digest, 0)) for image in found]

    found = target.run(work, deadline=None)
    columns: dict[str, listing.Column] = {
        "REF": "name",
        "TYPE": "media_type",
        "DIGEST": "digest",
        "SIZE": lambda row: output.size(row["size"]) if row["size"] else "",
        "LABELS": "labels",
    }
    listing.show(form, (_row(image, count) for image, count in found), columns=columns, name="name")


def _row(image: Image, size: int) -> dict[str, Any]:
    return {
        "name": image.name,
        "media_type": image.target.media_type,
        "digest": str(image.target.digest),
        "size": size,
        "labels": dict(image.labels),
        "created_at": image.created_at,
        "updated_at": image.updated_at,
    }


async def _sizes(client: "Client", images: Sequence[Image]) -> dict[str, int]:
    """Size by digest, each looked up once, some at a time."""
    waiting = {image.target.digest: image for image in images}
    sizes: dict[str, int] = {}

    async def look_up() -> None:
        while waiting:
            digest, image = waiting.popitem()
            with context.deadline(DEADLINE):
                sizes[digest] = await _size(client, image)

    async with asyncio.TaskGroup() as group:
        for number in range(min(LOOKUPS, len(waiting))):
            group.create_task(look_up(), name=f"look up sizes {number}")
    return sizes


async def _size(client: "Client", image: Image) -> int:
    """Bytes of the content that makes up the image on this machine's platform; 0 where it is not all there."""
    from carina.client.image import manifest_of
    from carina.errors import CarinaError

    try:
        descriptor, manifest = await manifest_of(client.content, image)
    except CarinaError:
        return 0
    return descriptor.size + sum(child.size for child in manifest.children)


@images.command("check")
@click.argument("filters", nargs=-1)
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="overlayfs", show_default=True)
@listing.options
@click.pass_obj
def check(target: Target, filters: Sequence[str], snapshotter: str, form: listing.Form) -> None:
    """Say for each image whether its content is complete and whether it is unpacked; -q names those that are both."""

    async def work(client: "Client") -> list[listing.Row]:
        return [await _check(client, image, snapshotter) for image in await client.images.list(filters)]

    found = target.run(work)
    if form.quiet:
        found = [row for row in found if row["status"].startswith("complete") and row["unpacked"] == "true"]
    keys = ("name", "media_type", "digest", "status", "size", "unpacked")
    columns: dict[str, listing.Column] = dict(zip(_CHECKED, keys, strict=True))
    listing.show(form, found, columns=columns, name="name")


_CHECKED: Final = ("REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED")


async def _check(client: "Client", image: Image, snapshotter: str) -> listing.Row:
    from carina.client.image import describe, manifest_of
    from carina.errors import CarinaError, FailedPrecondition, NotFound
    from carina.images.manifest import chain_ids

    try:
        _, manifest = await manifest_of(client.content, image)
    except CarinaError as error:
        return _checked(image, f"unavailable ({error})", "-", "false")
    have = [child for child in manifest.children if await _present(client, child.digest)]
    status = "complete" if len(have) == len(manifest.children) else "incomplete"
    sizes = f"{output.size(sum(c.size for c in have))}/{output.size(sum(c.size for c in manifest.children))}"
    unpacked = "false"
    if manifest.config in have:
        try:
            chain = chain_ids((await describe(client.content, image)).config.diff_ids)
            await client.snapshotter(snapshotter).stat(chain[-1])
            unpacked = "true"
        except (NotFound, IndexError, FailedPrecondition):
            pass
    counted = f"{status} ({len(have)}/{len(manifest.children)})"
    return _checked(image, counted, sizes, unpacked)


def _checked(image: Image, status: str, size: str, unpacked: str) -> listing.Row:
    return _row(image, 0) | {"status": status, "size": size, "unpacked": unpacked}


async def _present(client: "Client", digest: str) -> bool:
    from carina.digest import Digest
    from carina.errors import NotFound

    try:
        await client.content.info(Digest(digest))
    except NotFound:
        return False
    return True


@images.command("tag")
@click.argument("source", shell_complete=complete.names("images"))
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Replace an image of the new name.")
@click.pass_obj
def tag(target: Target, source: str, names: Sequence[str], force: bool) -> None:
    """Give an image further names."""

    async def work(client: "Client") -> None:
        from carina.client.run import leased
        from carina.leases import Resource

        async with leased(client) as lease:
            image = await client.images.get(str(normalize(source)))
            # Held before its presence is looked at: the source may be removed meanwhile.
            if lease:
                await client.leases.add_resource(lease, Resource(type="content", id=image.target.digest))
            await client.content.info(image.target.digest)
            for name in names:
                copy = Image(name=str(normalize(name)), target=image.target, labels=image.labels)
                await _record(client, copy, force=force)
                click.echo(copy.name)

    target.run(work)


async def _record(client: "Client", image: Image, *, force: bool) -> None:
    from carina.errors import AlreadyExists

    try:
        await client.images.create(image)
    except AlreadyExists:
        if not force:
            raise
        await client.images.update(image, ["target", "labels"])


@images.command("convert")
@click.argument("source", shell_complete=complete.names("images"))
@click.argument("name", metavar="TARGET")
@click.option("--uncompress", "compression", flag_value="none", help="Store the layers uncompressed.")
@click.option("--gzip", "compression", flag_value="gzip", help="Compress the layers with gzip.")
@click.option("--zstd", "compression", flag_value="zstd", help="Compress the layers with zstd; implies --oci.")
@click.option("--oci", is_flag=True, help="Give Docker's documents and layers OCI's media types.")
@click.option("--platform", "platforms", multiple=True, help="OS/ARCH[/VARIANT]; this machine's where absent.")
@click.option("--all-platforms", is_flag=True, help="Convert every platform; all must be here.")
@click.pass_obj
def convert(
    target: Target,
    source: str,
    name: str,
    compression: str | None,
    oci: bool,
    platforms: Sequence[str],
    all_platforms: bool,
) -> None:
    """Convert the image SOURCE and call the result TARGET."""
    from carina.client.convert import Conversion
    from carina.platforms import Platform, host

    wanted = () if all_platforms else tuple(Platform.parse(text) for text in platforms) or (host(),)
    wish = Conversion(compression=compression or "", oci=oci, platforms=wanted)

    async def work(client: "Client") -> str:
        from carina.client.convert import convert
        from carina.client.run import leased

        async with leased(client):
            image = await client.images.get(str(normalize(source)))
            made = await convert(client.content, image, wish)
            await _record(client, Image(name=str(normalize(name)), target=made, labels=image.labels), force=True)
            return made.digest

    click.echo(target.run(work, deadline=None))


@images.command("mount")
@click.argument("name", metavar="IMAGE", shell_complete=complete.names("images"))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="overlayfs", show_default=True)
@click.option("--rw", "writable", is_flag=True, help="Mount it writable.")
@click.option("--platform", "platform", help="OS/ARCH[/VARIANT]; this machine's where absent.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the snapshot.")
@click.pass_obj
def mount(
    target: Target,
    name: str,
    directory: Path,
    snapshotter: str,
    writable: bool,
    platform: str | None,
    labels: Sequence[str],
) -> None:
    """Mount the tree of IMAGE on DIRECTORY."""
    from carina.platforms import Platform, host

    async def work(client: "Client") -> str:
        from carina.client.imagemount import mount_image

        return await mount_image(
            client,
            await client.images.get(str(normalize(name))),
            directory,
            snapshotter=snapshotter,
            platform=Platform.parse(platform) if platform else host(),
            writable=writable,
            snapshot_labels=output.parse_labels(labels),
        )

    click.echo(target.run(work, deadline=None))


@images.command("unmount")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="overlayfs", show_default=True)
@click.option("--rm", "remove_snapshot", is_flag=True, help="Remove the snapshot as well.")
@click.pass_obj
def unmount(target: Target, directory: Path, snapshotter: str, remove_snapshot: bool) -> None:
    """Unmount the image from DIRECTORY."""

    async def work(client: "Client") -> None:
        from carina.client.imagemount import unmount_image

        await unmount_image(client, directory, snapshotter=snapshotter, remove=remove_snapshot)

    target.run(work)
    click.echo(directory)


@images.command("label")
@click.argument("name", shell_complete=complete.names("images"))
@click.argument("labels", nargs=-1)
@click.option("-r", "--replace-all", is_flag=True, help="Replace all labels.")
@click.pass_obj
def label(target: Target, name: str, labels: Sequence[str], replace_all: bool) -> None:
    """Set labels, KEY=VALUE; an empty value removes one."""
    values = output.parse_labels(labels)
    if not values and not replace_all:
        raise click.UsageError("no label given (--replace-all without any removes all)")

    async def work(client: "Client") -> Image:
        image = await client.images.get(str(normalize(name)))
        fields = ["labels"] if replace_all else [f"labels.{key}" for key in values]
        return await client.images.update(Image(name=image.name, target=image.target, labels=values), fields)

    click.echo(output.labels(target.run(work).labels))


@images.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=complete.names("images"))
@click.option("--sync", is_flag=True, help="Return when the disk is clean of what nothing refers to any more.")
@click.pass_obj
def remove(target: Target, names: Sequence[str], sync: bool) -> None:
    """Remove images."""

    async def work(client: "Client") -> None:
        for position, name in enumerate(names):
            reference = str(normalize(name))
            await client.images.delete(reference, sync=sync and position == len(names) - 1)
            click.echo(reference)

    target.run(work, deadline=None)


@images.command("prune")
@click.option("--all", "every", is_flag=True, required=True, help="All that no container was made from.")
@click.option("--sync", is_flag=True, help="Return when the disk is clean of what nothing refers to any more.")
@click.pass_obj
def prune(target: Target, every: bool, sync: bool) -> None:
    """Remove the images that no container of the namespace was made from."""

    async def work(client: "Client") -> None:
        used = {container.image for container in await client.containers.list()}
        unused = [image.name for image in await client.images.list() if image.name not in used]
        for position, name in enumerate(unused):
            await client.images.delete(name, sync=sync and position == len(unused) - 1)
            click.echo(name)

    target.run(work, deadline=None)


@images.command("tree")
@click.argument("names", nargs=-1, shell_complete=complete.names("images"))
@click.pass_obj
def tree(target: Target, names: Sequence[str]) -> None:
    """Show indexes, manifests, configurations and layers of images, and who refers to each."""

    async def work(client: "Client") -> list[str]:
        from carina.cli.references import image_lines

        found = [await client.images.get(str(normalize(name))) for name in names]
        return [line async for line in image_lines(client, found)]

    for line in target.run(work, deadline=None):
        click.echo(output.plain(line))
