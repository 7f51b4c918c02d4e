"""Where a back end is: by a swap, by the configuration, and by whichever is newer."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from carina import context
from carina.config import Config, ProxyPlugin
from carina.content.server import ContentService
from carina.errors import FailedPrecondition
from carina.rpc.server import serve
from carina.swap import Place
from conformance.content_suite import get, put
from contentd.store import LocalContentStore
from metadatad.backends import Registry
from support.content import directory
from support.views import content_backend, metadata, snapshot_backend

ROOT = {"containerd.io/gc.root": "x"}


@pytest.fixture
async def base() -> AsyncIterator[Path]:
    """With the back ends as configured, and another content store at `o.sock`."""
    with directory() as path, context.within(namespace="one"):
        async with content_backend(path), snapshot_backend(path), LocalContentStore(path / "other") as other:
            async with serve(f"unix://{path}/o.sock", [ContentService(other)], name="other", grace=1.0):
                yield path


async def content_address(registry: Registry) -> str:
    return next(backend.address for backend in await registry.list() if backend.name == "content")


def other(base: Path) -> Place:
    return Place(address=f"unix://{base}/o.sock")


async def test_a_swap_is_there_after_a_restart_until_the_configuration_changes(base: Path) -> None:
    """With the same file, the place of the swap counts; with another address in the file than at the swap, the file."""
    async with metadata(base) as (_, registry, _, _):
        await registry.mover.swap(["content"], other(base))
        await put(registry.content, b"data", ROOT)
    async with metadata(base) as (_, registry, records, _):
        assert await content_address(registry) == f"unix://{base}/o.sock"
        back = await registry.mover.swap(["content"], other(base))
        assert back == []
        await records.write(
            lambda transaction: transaction.connection.execute(
                "UPDATE swaps SET home = ?", ('{"address":"unix:///elsewhere"}',)
            )
        )
    async with metadata(base) as (_, registry, records, _):
        assert await content_address(registry) == f"unix://{base}/c.sock"
        assert await records.read(lambda c: c.execute("SELECT count(*) FROM swaps").fetchone()[0]) == 0


async def test_a_reload_moves_a_service_to_a_changed_address(base: Path) -> None:
    """Checked as a swap is: refused, and nothing else of the file taken over, while something is missing there."""
    async with metadata(base) as (_, registry, records, _):
        before: Config = registry.config
        registry.reread = lambda: replace(before, services={**before.services, "content": f"unix://{base}/o.sock"})
        digest = await put(registry.content, b"data", ROOT)
        with pytest.raises(FailedPrecondition, match=f"lacks content {digest}"):
            await registry.reload()
        assert await content_address(registry) == f"unix://{base}/c.sock"
        await registry.content.delete(digest)
        reloaded = await registry.reload()
        assert list(reloaded.changes) == [f"content is at unix://{base}/o.sock now"]
        assert list(reloaded.later) == []
        new = await put(registry.content, b"new", ROOT)
        assert await get(registry.content, new) == b"new"
        assert await records.read(lambda c: c.execute("SELECT count(*) FROM swaps").fetchone()[0]) == 0
        assert list((await registry.reload()).changes) == []


async def test_a_plugin_that_was_swapped_is_not_changed_where_it_was(base: Path) -> None:
    """A reload that would take it back without a look at what it has there is refused, with the command to go first."""
    mine = ProxyPlugin(name="mine", type="snapshot", address=f"unix://{base}/native.sock", snapshotter="mine")
    async with metadata(base, plugins=[mine]) as (_, registry, _, _), snapshot_backend(base, "moved"):
        await registry.mover.swap(["snapshots.mine"], Place(address=f"unix://{base}/moved.sock"))
        before: Config = registry.config
        changed = {"mine": replace(mine, capabilities=("rebase",))}
        registry.reread = lambda: replace(before, proxy_plugins=changed)
        with pytest.raises(FailedPrecondition, match=r"`carina swap snapshots\.mine --back` comes first"):
            await registry.reload()
        assert await registry.mover.swap(["snapshots.mine"], None)
        assert len((await registry.reload()).changes) == 1
