"""Content stores to test: ours in this process, ours behind a socket, and a real containerd's."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from carina.content.client import RemoteContentStore
from carina.content.server import ContentService, LaneService
from carina.rpc.client import connect
from carina.rpc.lane import LaneServer
from carina.rpc.server import serve
from contentd.store import LocalContentStore


@contextlib.contextmanager
def directory(parent: str = "/tmp") -> Iterator[Path]:
    """A scratch directory with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="carina-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.asynccontextmanager
async def remote(path: Path, *, lane: bool = True) -> AsyncIterator[RemoteContentStore]:
    """A store in this process, behind real sockets."""
    address = f"unix://{path}/c.sock"
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(LocalContentStore(path / "content"))
        server = await stack.enter_async_context(LaneServer(path / "c.fd.sock"))
        handlers = [ContentService(store), LaneService(store, server)] if lane else [ContentService(store)]
        await stack.enter_async_context(serve(address, handlers, name="contentd", grace=1.0))
        channel = connect(address)
        stack.callback(channel.close)
        yield RemoteContentStore(channel)


@contextlib.contextmanager
def containerd(path: Path, *, sharing: str = "shared", program: str = "containerd") -> Iterator[str]:
    """A containerd of its own, with nothing but metadata and content; its address."""
    config = path / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{path}/root"\nstate = "{path}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", '
        '"io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", '
        '"io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]\n'
        # No collections: nothing refers to what the tests store.
        '[plugins."io.containerd.gc.v1.scheduler"]\n  deletion_threshold = 0\n  mutation_threshold = 1000000000\n'
        '  startup_delay = "1h"\n'
        f'[plugins."io.containerd.metadata.v1.bolt"]\n  content_sharing_policy = "{sharing}"\n'
        f'[grpc]\n  address = "{path}/d.sock"\n[ttrpc]\n  address = "{path}/d.sock.ttrpc"\n'
    )
    with (path / "log").open("wb") as log:
        process = subprocess.Popen([program, "--config", str(config)], stdout=log, stderr=log)
        try:
            limit = time.monotonic() + 15
            while b"containerd successfully booted" not in (path / "log").read_bytes():
                assert process.poll() is None, (path / "log").read_text()
                assert time.monotonic() < limit, (path / "log").read_text()
                time.sleep(0.05)
            yield f"unix://{path}/d.sock"
        finally:
            process.terminate()
            process.wait(20)
