"""snapshotd as a process: killed at any instant, spoken to by containerd's client, described to others."""

import asyncio
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from carina.errors import CarinaError, NotFound, Unavailable
from carina.introspection.client import RemoteIntrospection
from carina.linux.mount import mounted
from carina.rpc.client import connect
from carina.snapshots import Info, Kind, Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from support.snapshots import snapshotd


class Ledger:
    """Builds layers until the snapshotter dies, and notes what was acknowledged and what was under way."""

    def __init__(self) -> None:
        self.committed: list[str] = []
        self.removed: list[str] = []
        self.doubtful: set[str] = set()
        self._count = 0

    async def work(self, snapshotter: Snapshotter) -> None:
        while True:
            self._count += 1
            key, name = f"key-{self._count}", f"layer-{self._count}"
            self.doubtful |= {key, name}
            parent = self.committed[-1] if self.committed and self._count % 3 else ""
            (mount, *_) = await snapshotter.prepare(key, parent)
            upper = next((o.partition("=")[2] for o in mount.options if o.startswith("upperdir=")), mount.source)
            await asyncio.to_thread((Path(upper) / "file").write_text, name)
            await snapshotter.commit(name, key)
            self.doubtful -= {key, name}
            self.committed.append(name)
            if self._count % 4 == 0:
                await snapshotter.prepare(f"gone-{self._count}")
                await snapshotter.remove(f"gone-{self._count}")
                self.removed.append(f"gone-{self._count}")

    async def check(self, snapshotter: Snapshotter) -> None:
        for name in self.committed:
            assert (await snapshotter.stat(name)).kind is Kind.COMMITTED
            (mount,) = await snapshotter.view("look", name)
            tree = await asyncio.to_thread(self._read, mount)
            assert tree == name
            await snapshotter.remove("look")
        for name in self.removed:
            with pytest.raises(NotFound):
                await snapshotter.stat(name)

    @staticmethod
    def _read(mount: object) -> str:
        with mounted([mount]) as tree:  # type: ignore[list-item]
            return (tree / "file").read_text()


@pytest.mark.root
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Three times killed in the middle of work: commits are whole, removals stay, and nothing unrecorded remains."""
    ledger, socket = Ledger(), tmp_path / "snapshotd-overlayfs.sock"
    for _ in range(3):
        with snapshotd(tmp_path) as process:
            channel = connect(f"unix://{socket}")
            snapshotter = RemoteSnapshotter(channel)
            try:
                await ledger.check(snapshotter)
                working = asyncio.create_task(ledger.work(snapshotter))
                await asyncio.sleep(random.uniform(0.05, 0.4))
                process.send_signal(signal.SIGKILL)
                with pytest.raises((Unavailable, CarinaError)):
                    await working
            finally:
                channel.close()
    with snapshotd(tmp_path):
        channel = connect(f"unix://{socket}")
        snapshotter = RemoteSnapshotter(channel)
        try:
            await ledger.check(snapshotter)
            await snapshotter.cleanup()
            known = [info async for info in snapshotter.walk()]
        finally:
            channel.close()
    folder = tmp_path / "root" / "snapshotd-overlayfs" / "snapshots"
    assert len(os.listdir(folder)) == len(known)
    assert {info.name for info in known} <= {*ledger.committed, *ledger.doubtful} | {
        info.name for info in known if info.name.startswith("gone-") and info.name not in ledger.removed
    }


@pytest.mark.root
async def test_it_describes_its_plugin(tmp_path: Path) -> None:
    """Type, name, platform, capabilities and directory, as containerd's clients ask before they make a container."""
    with snapshotd(tmp_path):
        channel = connect(f"unix://{tmp_path}/snapshotd-overlayfs.sock")
        introspection = RemoteIntrospection(channel)
        (plugin,) = await introspection.plugins(["type==io.containerd.snapshotter.v1,id==overlayfs"])
        nothing = await introspection.plugins(["id==other"])
        channel.close()
    assert (plugin.type, plugin.id) == ("io.containerd.snapshotter.v1", "overlayfs")
    assert [platform.os for platform in plugin.platforms] == ["linux"]
    assert set(plugin.capabilities) >= {"only-remap-ids", "rebase"}
    assert plugin.exports == {"root": str(tmp_path / "root" / "snapshotd-overlayfs")}
    assert nothing == []


@pytest.mark.root
async def test_a_long_list_comes_in_blocks_and_any_name_is_ours(tmp_path: Path) -> None:
    """More than two blocks of 100; a request may name the snapshotter as its sender configured it."""
    with snapshotd(tmp_path, "native"):
        channel = connect(f"unix://{tmp_path}/snapshotd-native.sock")
        snapshotter = RemoteSnapshotter(channel, "whatever")
        await asyncio.gather(*(snapshotter.prepare(f"k{number:03}") for number in range(230)))
        names = [info.name async for info in snapshotter.walk()]
        changed = await snapshotter.update(Info(name="k007", labels={"a": "b"}), ["labels.a"])
        channel.close()
    assert names == [f"k{number:03}" for number in range(230)]
    assert (changed.kind, changed.labels) == (Kind.ACTIVE, {"a": "b"})


@pytest.mark.root
async def test_a_second_process_on_the_same_root_ends_with_a_sentence(tmp_path: Path) -> None:
    """It does not disturb the first."""
    with snapshotd(tmp_path) as first:
        other = tmp_path / "other"
        other.mkdir()
        second = await asyncio.to_thread(
            subprocess.run,
            [*first.args[:4], str(tmp_path / "root"), "--state", str(other)],  # type: ignore[index]
            capture_output=True,
            text=True,
            timeout=20,
            cwd="/",
        )
        assert first.poll() is None
    assert second.returncode == 1
    assert "in use by another process" in second.stderr
    assert "Traceback" not in second.stderr
