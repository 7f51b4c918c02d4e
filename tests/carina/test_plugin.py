"""Plugging implementations in: into Carina's client and into an unmodified containerd."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import plugin
from carina.errors import InvalidArgument
from carina.rpc.client import connect
from carina.snapshots import Kind
from carina.snapshots.client import RemoteSnapshotter
from carina.snapshots.directory import DirectorySnapshotter
from support.snapshots import demo, snapshotd, wait_for

CONFIG = """
version = 2
root = "{base}/containerd"
state = "{base}/state"
imports = []
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{base}/containerd.sock"
[ttrpc]
  address = "{base}/containerd.sock.ttrpc"
[proxy_plugins.{name}]
  type = "snapshot"
  address = "{socket}"
"""


class Empty(DirectorySnapshotter):
    async def fill(self, tree: Path, parent: Path | None) -> None:
        pass


@contextlib.contextmanager
def containerd(base: Path, name: str, socket: Path) -> Iterator[Path]:
    """The machine's containerd with one proxy plugin; the path of its socket."""
    config = base / "config.toml"
    config.write_text(CONFIG.format(base=base, name=name, socket=socket))
    with (base / "containerd.log").open("w") as log:
        process = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log)
    try:
        wait_for(base / "containerd.sock", process)
        yield base / "containerd.sock"
    finally:
        process.terminate()
        process.wait(20)


def ctr(address: Path, *arguments: str) -> str:
    done = subprocess.run(["ctr", "--address", str(address), *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_plugin_is_served_with_one_call(tmp_path: Path) -> None:
    """And is the same interface on the other side of the socket."""
    async with plugin.serving(await asyncio.to_thread(Empty, tmp_path / "trees"), tmp_path / "it.sock"):
        channel = connect(f"unix://{tmp_path}/it.sock")
        snapshotter = RemoteSnapshotter(channel)
        (mount,) = await snapshotter.prepare("a", labels={"k": "v"})
        info = await snapshotter.stat("a")
        channel.close()
    assert (info.kind, info.labels) == (Kind.ACTIVE, {"k": "v"})
    assert Path(mount.source).parent == tmp_path / "trees" / "trees"


def test_what_is_no_plugin_is_refused() -> None:
    """By name of its class."""
    with pytest.raises(InvalidArgument, match="Path is neither"):
        plugin.adapters(Path("/"))  # type: ignore[arg-type]


async def test_records_survive_a_restart(tmp_path: Path) -> None:
    """Kinds, parents, times, labels and trees."""
    first = await asyncio.to_thread(Empty, tmp_path)
    await first.prepare("a")
    await first.commit("base", "a", {"l": "1"})
    mounts = await first.prepare("b", "base")
    second = await asyncio.to_thread(Empty, tmp_path)
    assert [info async for info in second.walk()] == [info async for info in first.walk()]
    assert await second.mounts("b") == mounts


@pytest.mark.root
@pytest.mark.parametrize("kind", ["demo", "overlayfs"])
def test_an_unmodified_containerd_uses_the_plugin(tmp_path: Path, kind: str) -> None:
    """`ctr snapshots` prepares, mounts, commits, lists, measures and removes through the proxy."""
    started, socket = (
        (demo(tmp_path), tmp_path / "demo.sock")
        if kind == "demo"
        else (snapshotd(tmp_path), tmp_path / "snapshotd-overlayfs.sock")
    )
    with started, containerd(tmp_path, "mine", socket) as address:
        snapshots = ("snapshots", "--snapshotter", "mine")
        source = ctr(address, *snapshots, "prepare", "--target", "/mnt", "one").split()[4]
        (Path(source) / "file").write_text("hello")
        ctr(address, *snapshots, "commit", "base", "one")
        ctr(address, *snapshots, "prepare", "two", "base")
        command = ctr(address, *snapshots, "mounts", "/mnt", "two").split()
        assert command[:2] == ["mount", "-t"]
        listed = ctr(address, *snapshots, "ls").splitlines()[1:]
        assert sorted(tuple(line.split()) for line in listed) == [("base", "Committed"), ("two", "base", "Active")]
        assert "base" in ctr(address, *snapshots, "usage")
        assert "key=value" in ctr(address, *snapshots, "label", "two", "key=value")
        assert '"key": "value"' in ctr(address, *snapshots, "info", "two")
        ctr(address, *snapshots, "rm", "two")
        ctr(address, *snapshots, "rm", "base")
        assert ctr(address, *snapshots, "ls").splitlines()[1:] == []
