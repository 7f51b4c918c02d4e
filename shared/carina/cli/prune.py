"""References to layers removed, so that the compressed layers of unpacked images can be collected."""

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from carina.content import Info
from carina.labels import GC_EXPIRE, GC_REF_CONTENT
from carina.leases import Lease

if TYPE_CHECKING:
    from carina.client import Client

_LAYER: Final = re.compile(rf"{re.escape(GC_REF_CONTENT)}\.(?:l\.)?(\d+)")
"""Labels of manifests for their layers: `l.0`, and in old stores the bare number, where 0 is the configuration."""


async def prune_references(client: "Client", *, dry: bool, sync: bool) -> AsyncIterator[tuple[str, Sequence[str]]]:
    """Remove the labels of all content that keep layers; yields each digest with its labels.

    Whatever else keeps a layer goes on doing so. With `sync`, what became garbage is gone at the end.
    """
    async for info in client.content.walk():
        keys = [key for key in info.labels if _is_layer(key)]
        if not keys:
            continue
        if not dry:
            fields = [f"labels.{key}" for key in keys]
            await client.content.update(Info(digest=info.digest, labels=dict.fromkeys(keys, "")), fields)
        yield info.digest, keys
    if sync and not dry:
        soon = (datetime.now(UTC) + timedelta(minutes=10)).strftime("%Y-%m-%dT%H:%M:%SZ")
        lease = await client.leases.create(Lease(id=f"prune-{secrets.token_hex(8)}", labels={GC_EXPIRE: soon}))
        await client.leases.delete(lease.id, sync=True)


def _is_layer(key: str) -> bool:
    found = _LAYER.fullmatch(key)
    return found is not None and (".l." in key or found[1] != "0")
