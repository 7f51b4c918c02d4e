"""snapshotd killed at each step of its work that has a fault point, and opened again."""

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from carina import faults
from carina.errors import AlreadyExists, CarinaError, NotFound
from carina.rpc.client import connect
from carina.snapshots import Kind, Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from snapshotd import snapshotter as source
from snapshotd.overlay import Overlay
from snapshotd.snapshotter import Settings, open_snapshotter
from support.content import directory
from support.snapshots import snapshotd

POINTS = sorted(
    point
    for module in Path(source.__file__).parent.glob("*.py")
    for point in re.findall(r'faults\.point\("(.*)"\)', module.read_text())
)


class Work:
    """Layers built and removed until the snapshotter dies; what it had acknowledged by then."""

    def __init__(self) -> None:
        self.committed: dict[str, str] = {}
        """Names, with their parents."""
        self.removed: set[str] = set()

    async def go_on(self, address: str) -> None:
        channel = connect(address)
        with contextlib.suppress(CarinaError):
            for number in range(100):
                await self._add(RemoteSnapshotter(channel), number)
        channel.close()

    async def _add(self, snapshotter: Snapshotter, number: int) -> None:
        parent = f"layer-{number - 1}" if number % 3 else ""
        (mount,) = await snapshotter.prepare("key", parent)
        upper = next((o.removeprefix("upperdir=") for o in mount.options if o.startswith("upperdir=")), mount.source)
        (Path(upper) / f"file-{number}").touch()
        await snapshotter.commit(f"layer-{number}", "key")
        self.committed[f"layer-{number}"] = parent
        await snapshotter.view("gone", f"layer-{number}")
        await snapshotter.remove("gone")
        self.removed.add("gone")
        await snapshotter.cleanup()


@pytest.mark.root
@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_step_is_settled(point: str) -> None:
    """What was acknowledged is whole, what was under way is there or not, nothing is left over, and work goes on."""
    with directory() as base:
        work = Work()
        with snapshotd(base, environment={faults.VARIABLE: f"{point}:3"}) as process:
            asyncio.run(work.go_on(f"unix://{base}/snapshotd-overlayfs.sock"))
            assert process.wait(30) == -signal.SIGKILL
        asyncio.run(_check(base / "root" / "snapshotd-overlayfs", work))


async def _check(root: Path, work: Work) -> None:
    async with open_snapshotter(root, Overlay(), Settings()) as snapshotter:
        for name, parent in work.committed.items():
            info = await snapshotter.stat(name)
            assert (info.kind, info.parent) == (Kind.COMMITTED, parent)
        await snapshotter.cleanup()
        known = {info.name async for info in snapshotter.walk()}
        assert len(os.listdir(root / "snapshots")) == len(known)
        assert known <= {*work.committed, "key", "gone", f"layer-{len(work.committed)}"}
        for key in sorted({"key", "gone"} & known):
            with pytest.raises(AlreadyExists):
                await snapshotter.prepare(key)
            await snapshotter.mounts(key)
            await snapshotter.remove(key)
        for key in ("key", "gone"):
            with pytest.raises(NotFound):
                await snapshotter.stat(key)
        names = sorted(known - {"key", "gone"}, key=lambda name: int(name.partition("-")[2]))
        for name in names:
            (mount, *_) = await snapshotter.view("look", name)
            top = next((o for o in mount.options if o.startswith("lowerdir=")), f"lowerdir={mount.source}")
            upper = top.removeprefix("lowerdir=").partition(":")[0]
            assert os.listdir(upper) == [name.replace("layer", "file")]
            await snapshotter.remove("look")
        for name in reversed(names):
            await snapshotter.remove(name)
        await snapshotter.cleanup()
        assert os.listdir(root / "snapshots") == []
