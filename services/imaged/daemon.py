"""The composition root: stores over metadatad's socket, the differ, and the services on top of them."""

import asyncio
import contextlib
import functools
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from carina import context
from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.backends.client import RemoteBackendRegistry
from carina.backends.plugged import Plugged
from carina.content import ContentStore
from carina.content.client import RemoteContentStore
from carina.diff import Differ
from carina.diff.server import DiffService
from carina.errors import CarinaError
from carina.images.client import RemoteImageStore
from carina.introspection.client import RemoteIntrospection
from carina.layer.workers import Workers
from carina.leases.client import RemoteLeaseManager
from carina.linux.disk import exercise
from carina.linux.privileges import require_own, require_root
from carina.namespaces.client import RemoteNamespaceStore
from carina.rpc.client import Channel, connect
from carina.rpc.readiness import Readiness
from carina.rpc.server import Listener
from carina.rpc.server import serve as serve_rpc
from carina.snapshots.client import RemoteSnapshotter
from carina.transfer import Transfer
from carina.transfer.deferred import DeferredTransfer
from carina.transfer.server import ReferrersService, StreamingService, TransferService
from carina.transfer.streams import Streams
from imaged.config import Config
from imaged.differ import LocalDiffer
from imaged.differs import Differs
from imaged.patience import Retry
from imaged.proxies import Proxies
from imaged.rpc import IntrospectionService

PROBE_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    await in_thread(require_root, "imaged", "mount snapshots and write layers into them")
    await in_thread(require_own, config.root, "imaged")
    scratch = await in_thread(_scratch, config.root)
    async with contextlib.AsyncExitStack() as stack:
        metadata = stack.enter_context(contextlib.closing(connect(config.metadata)))
        plugged = stack.enter_context(contextlib.closing(Plugged(RemoteBackendRegistry(metadata), "diff")))
        content = RemoteContentStore(metadata)
        workers = await stack.enter_async_context(Workers())
        own = LocalDiffer(
            content, scratch=scratch, limits=config.limits, processors=config.stream_processors, workers=workers
        )
        differ = Differs(own, plugged, order=config.differs, stall=config.stall_timeout)
        proxies = Proxies.of(os.environ)  # now, since a mistake in them is one of the start
        # With the first transfer: its http client takes ten megabytes, and not every machine pulls.
        load = functools.partial(_transfers, config, metadata, content, differ, proxies, workers)
        transfers = DeferredTransfer(functools.partial(in_thread, load))
        streams = Streams()
        handlers = [
            TransferService(transfers, streams),
            StreamingService(streams),
            ReferrersService(transfers, streams),
            DiffService(differ),
            IntrospectionService(),
        ]
        listener = await stack.enter_async_context(serve_rpc(config.address, handlers, name="imaged"))
        await stack.enter_async_context(_watching(metadata, scratch, listener))
        lifetime.ready()
        await lifetime.stopped()


def _transfers(
    config: Config,
    metadata: Channel,
    content: ContentStore,
    differ: Differ,
    proxies: Proxies,
    workers: Workers,
) -> Transfer:
    from imaged.fetcher import Pace
    from imaged.pull import Stores
    from imaged.transfer import Timeouts, Transfers

    return Transfers(
        Stores(
            content=content,
            images=RemoteImageStore(metadata),
            leases=RemoteLeaseManager(metadata),
            snapshotter=lambda name: RemoteSnapshotter(metadata, name),
            differ=differ,
            default_snapshotter=config.default_snapshotter,
            downloads=config.max_concurrent_downloads,
            uploads=config.max_concurrent_uploaded_layers,
            pace=Pace(piece=config.concurrent_layer_fetch_buffer, floor=config.minimum_rate),
            capabilities=_capabilities(metadata),
            sync_fs=config.sync_fs,
            verifiers=config.verifiers,
            workers=workers,
        ),
        config_path=config.config_path,
        retry=Retry(attempts=config.attempts),
        proxies=proxies,
        timeouts=Timeouts(connect=config.connect_timeout, stall=config.stall_timeout),
    )


def _scratch(root: Path) -> Path:
    """The differ's own directory, empty: what a killed process left in it is of no use."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    return scratch


def _capabilities(metadata: Channel) -> Callable[[str], Awaitable[Sequence[str]]]:
    plugins = RemoteIntrospection(metadata)

    async def capabilities(snapshotter: str) -> Sequence[str]:
        """As the snapshotter states them now: a plugin may be another program than the last time."""
        with context.deadline(PROBE_SECONDS):
            found = await plugins.plugins([f"type==io.containerd.snapshotter.v1,id=={snapshotter}"])
        return [capability for plugin in found if not plugin.error for capability in plugin.capabilities]

    return capabilities


@contextlib.asynccontextmanager
async def _watching(metadata: Channel, scratch: Path, listener: Listener) -> AsyncIterator[None]:
    """Say in the health of `imaged.metadata` whether metadatad answers, and in that of `imaged` whether it can work.

    Every operation needs the one; layers are made in the scratch directory.
    """

    async def watch() -> None:
        namespaces = RemoteNamespaceStore(metadata)
        while True:
            try:
                with context.deadline(PROBE_SECONDS):
                    await namespaces.list()
                listener.health.set("imaged.metadata", True)
            except CarinaError as error:
                _log.debug("metadatad does not answer: %s", error)
                listener.health.set("imaged.metadata", False)
            await asyncio.sleep(PROBE_SECONDS)

    readiness = Readiness("imaged", functools.partial(in_thread, exercise, scratch))
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(), name="watch metadatad")
        trying = group.create_task(readiness.watch(listener.health), name="readiness")
        try:
            yield
        finally:
            watching.cancel()
            trying.cancel()
