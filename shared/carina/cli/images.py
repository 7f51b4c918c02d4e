"""images: the image records of a namespace."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from carina.cli import output
from carina.cli.referrers import referrers
from carina.cli.target import Target
from carina.cli.usage import usage
from carina.images import Image
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client


LOOKUPS: Final = 8
"""Images whose manifests are read at a time."""


@click.group()
def images() -> None:
    """Manage images."""


images.add_command(usage, "usage")
images.add_command(referrers, "referrers")


@images.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, quiet: bool, filters: Sequence[str]) -> None:
    """List images; FILTERS as in containerd's filter language."""

    async def work(client: "Client") -> list[tuple[Image, int]]:
        found = await client.images.list(filters)
        sizes = {} if quiet else await _sizes(client, found)
        return [(image, sizes.get(image.target.digest, 0)) for image in found]

    found = target.run(work)
    if quiet:
        output.names(image.name for image, _ in found)
        return
    output.table(
        ("REF", "TYPE", "DIGEST", "SIZE", "LABELS"),
        [
            (
                i.name,
                i.target.media_type,
                i.target.digest,
                output.size(count) if count else "-",
                output.labels(i.labels),
            )
            for i, count in found
        ],
    )


async def _sizes(client: "Client", images: Sequence[Image]) -> dict[str, int]:
    """Size by digest, each looked up once, some at a time."""
    waiting = {image.target.digest: image for image in images}
    sizes: dict[str, int] = {}

    async def look_up() -> None:
        while waiting:
            digest, image = waiting.popitem()
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
@click.option("-q", "--quiet", is_flag=True, help="Print the names of those only that are complete and unpacked.")
@click.pass_obj
def check(target: Target, filters: Sequence[str], snapshotter: str, quiet: bool) -> None:
    """Say for each image whether its content is complete and whether it is unpacked."""

    async def work(client: "Client") -> list[tuple[str, ...]]:
        return [await _check(client, image, snapshotter) for image in await client.images.list(filters)]

    found = target.run(work)
    if quiet:
        output.names(one[0] for one in found if one[3].startswith("complete") and one[5] == "true")
        return
    output.table(("REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"), found)


async def _check(client: "Client", image: Image, snapshotter: str) -> tuple[str, ...]:
    from carina.client.image import describe, manifest_of
    from carina.errors import CarinaError, FailedPrecondition, NotFound
    from carina.images.manifest import chain_ids

    try:
        _, manifest = await manifest_of(client.content, image)
    except CarinaError as error:
        return image.name, image.target.media_type, image.target.digest, f"unavailable ({error})", "-", "false"
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
    return image.name, image.target.media_type, image.target.digest, counted, sizes, unpacked


async def _present(client: "Client", digest: str) -> bool:
    from carina.digest import Digest
    from carina.errors import NotFound

    try:
        await client.content.info(Digest(digest))
    except NotFound:
        return False
    return True


@images.command("tag")
@click.argument("source")
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
@click.argument("source")
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
@click.argument("name", metavar="IMAGE")
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
@click.argument("name")
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
@click.argument("names", nargs=-1, required=True)
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


@images.command("tree")
@click.argument("name")
@click.pass_obj
def tree(target: Target, name: str) -> None:
    """Show an image's index, manifests, configurations and layers."""

    async def work(client: "Client") -> None:
        from carina.client.image import walk

        image = await client.images.get(str(normalize(name)))
        click.echo(image.name)
        async for descriptor, depth in walk(client.content, image.target):
            missing = "" if await _present(client, descriptor.digest) else "  (not here)"
            indent = "  " * (depth + 1)
            click.echo(f"{indent}{descriptor.digest}  {descriptor.media_type}  {output.size(descriptor.size)}{missing}")

    target.run(work)
