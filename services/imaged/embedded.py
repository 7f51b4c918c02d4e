"""Transfers and layers in the process of whoever wants them: on stores that the caller has, whatever these are.

Without a snapshotter nothing is unpacked, and no right is needed. Without leases nothing is taken to be collected.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from carina import config as constellation
from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.errors import FailedPrecondition
from carina.images import ImageStore
from carina.leases import LeaseManager
from carina.mount import Mount
from carina.snapshots import Snapshotter
from imaged.config import Config
from imaged.differ import LocalDiffer
from imaged.fetcher import Pace
from imaged.patience import Retry
from imaged.proxies import Proxies
from imaged.pull import Stores
from imaged.transfer import Timeouts, Transfers


def configured() -> Config:
    """What the machine's configuration says. Reads files. Raises InvalidArgument where that can't be."""
    return Config.of(constellation.load())


def differ(content: ContentStore) -> LocalDiffer:
    """A differ on `content`. Applying layers takes the right to mount."""
    return LocalDiffer(content, scratch=Path(tempfile.gettempdir()))


def transfers(
    content: ContentStore,
    images: ImageStore,
    config: Config | None = None,
    *,
    snapshotter: Callable[[str], Snapshotter] | None = None,
    differ: Differ | None = None,
    leases: LeaseManager | None = None,
) -> Transfers:
    """Without a configuration the defaults hold, and no file is read."""
    config = config or Config(root=Path(), address="", metadata="")
    stores = Stores(
        content=content,
        images=images,
        snapshotter=snapshotter or _no_snapshotter,
        differ=differ or _NoDiffer(),
        leases=leases,
        downloads=config.max_concurrent_downloads,
        uploads=config.max_concurrent_uploaded_layers,
        pace=Pace(piece=config.concurrent_layer_fetch_buffer, floor=config.minimum_rate),
        verifiers=config.verifiers,
    )
    return Transfers(
        stores,
        config_path=config.config_path,
        retry=Retry(attempts=config.attempts),
        proxies=Proxies.of(os.environ),
        timeouts=Timeouts(connect=config.connect_timeout, stall=config.stall_timeout),
    )


def _no_snapshotter(name: str) -> Snapshotter:
    raise FailedPrecondition(f"nothing can be unpacked into snapshotter {name}: there is no constellation")


class _NoDiffer:
    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync_fs: bool = True,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Descriptor:
        raise FailedPrecondition(f"layer {layer.digest} can't be applied: there is no constellation")

    async def diff(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date_epoch: datetime | None = None,
    ) -> Descriptor:
        raise FailedPrecondition("no layer can be made: there is no constellation")
