"""Layers out of snapshots, and snapshots out of layers."""

import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from carina import context
from carina.cli.content import copy
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.snapshots import Kind

if TYPE_CHECKING:
    from carina.client import Client
    from carina.mount import Mount
    from carina.snapshots import Snapshotter


async def write_diff(
    client: "Client", name: str, lower: str, upper: str, *, media_type: str, ref: str, labels: Mapping[str, str]
) -> None:
    """Write the difference of two snapshots (or of one and its parent) to standard output.

    Raises:
        NotFound: there is no such snapshot.
    """
    from carina.client.run import leased
    from carina.diff.client import RemoteDiffer

    snapshotter = client.snapshotter(name)
    if not upper:
        lower, upper = (await snapshotter.stat(lower)).parent, lower
    async with leased(client), _mounts(snapshotter, lower) as below, _mounts(snapshotter, upper) as above:
        layer = await RemoteDiffer(client.channel).diff(below, above, media_type=media_type, ref=ref, labels=labels)
        await copy(client, layer.digest, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextlib.asynccontextmanager
async def _mounts(snapshotter: "Snapshotter", key: str) -> AsyncIterator[Sequence["Mount"]]:
    """A snapshot's mounts; those of a view for the time of the block where it is committed, or nothing."""
    if key and (await snapshotter.stat(key)).kind is not Kind.COMMITTED:
        yield await snapshotter.mounts(key)
        return
    view = f"diff-{secrets.token_hex(8)}"
    mounts = await snapshotter.view(view, key)
    try:
        yield mounts
    finally:
        with context.no_deadline():
            await snapshotter.remove(view)


async def unpack_manifest(client: "Client", name: str, digest: str) -> str:
    """Unpack the image that a manifest or an index describes; the key of its top snapshot.

    Raises:
        InvalidArgument: the content is neither.
    """
    from carina.client.image import describe, unpack
    from carina.client.run import leased
    from carina.diff.client import RemoteDiffer
    from carina.images import Image

    target = Descriptor(media_type=await _media_type(client, Digest(digest)), digest=Digest(digest), size=0)
    async with leased(client):
        described = await describe(client.content, Image(name=digest, target=target))
        return await unpack(
            client.content, client.snapshotter(name), RemoteDiffer(client.channel), described, name=name
        )


async def _media_type(client: "Client", digest: Digest) -> str:
    """What a document says that it is."""
    import json

    from carina.images.manifest import OCI_INDEX, OCI_MANIFEST

    async with await client.content.reader(digest) as reader:
        data = await reader.read(0, min(reader.size, 4 << 20))
    try:
        found = json.loads(data)
        said = found.get("mediaType") or (
            OCI_INDEX if "manifests" in found else OCI_MANIFEST if "layers" in found else ""
        )
    except (ValueError, AttributeError):
        said = ""
    if not said:
        raise InvalidArgument(f"content {digest} is neither a manifest nor an index")
    return str(said)
