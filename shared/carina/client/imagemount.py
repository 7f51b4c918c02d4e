"""Images mounted on a directory, as `ctr images mount` does it: a snapshot and a lease, both named by the directory."""

import contextlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from carina import context, labels
from carina.aio.threads import in_thread
from carina.client.client import Client
from carina.client.image import describe, unpack
from carina.errors import NotFound
from carina.images import Image
from carina.leases import Lease
from carina.linux.mount import mount_all, unmount_all
from carina.platforms import Matcher, Platform

LEASE_HOURS: Final = 24


async def mount_image(
    client: Client,
    image: Image,
    target: Path,
    *,
    snapshotter: str,
    platform: Platform,
    writable: bool = False,
    snapshot_labels: Mapping[str, str] | None = None,
) -> str:
    """Mount an image's tree on `target` and return the key of the snapshot.

    It lasts until `unmount_image`, or until the lease expires after a day.

    Raises:
        AlreadyExists: something is mounted there by this means already.
        NotFound: the directory, or content of the image, is not there.
    """
    key = os.path.abspath(target)
    name = snapshotter
    found = client.snapshotter(name)
    until = (datetime.now(UTC) + timedelta(hours=LEASE_HOURS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    held = {labels.GC_EXPIRE: until, f"{labels.GC_REF_SNAPSHOT}.{name}": key}
    await client.leases.create(Lease(id=key, labels=held))
    try:
        with context.within(lease=key):
            described = await describe(client.content, image, Matcher.only(platform))
            top = await unpack(client.content, found, client.diff, described, name=name)
            prepare = found.prepare if writable else found.view
            mounts = await prepare(key, top, dict(snapshot_labels or {}))
        try:
            await in_thread(mount_all, mounts, target)
        except BaseException:
            await found.remove(key)
            raise
    except BaseException:
        with contextlib.suppress(NotFound):
            await client.leases.delete(key)
        raise
    return key


async def unmount_image(client: Client, target: Path, *, snapshotter: str, remove: bool = False) -> None:
    """Unmount what is on `target`; with `remove`, its snapshot and lease go as well."""
    key = os.path.abspath(target)
    await in_thread(unmount_all, target)
    if remove:
        with contextlib.suppress(NotFound):
            await client.snapshotter(snapshotter).remove(key)
        with contextlib.suppress(NotFound):
            await client.leases.delete(key)
