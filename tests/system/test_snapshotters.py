"""Snapshotters across the border: ours in a real containerd, its own in ours; and a very tall stack."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import context
from carina.linux.filesystem import filesystem_type
from carina.linux.mount import mounted
from carina.rpc.client import connect
from carina.snapshots import Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from support.constellation import Constellation
from support.content import containerd, directory
from support.snapshots import serving, snapshotd, wait_for

HEIGHT = 200
KEPT = {"containerd.io/gc.root": "test"}
needs_containerd = pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")


class Ctr:
    """`ctr` at a containerd."""

    def __init__(self, socket: Path, namespace: str) -> None:
        self._command = ["ctr", "--address", str(socket), "--namespace", namespace]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def containerd_on_our_services(base: Path) -> Iterator[Ctr]:
    """A containerd whose only content store and only overlay snapshotter are contentd and snapshotd."""
    disabled = ["grpc.v1.cri", "content.v1.content", "internal.v1.opt"]
    disabled += [f"snapshotter.v1.{name}" for name in ("overlayfs", "native", "btrfs", "zfs", "aufs", "devmapper")]
    plugins = ", ".join(f'"io.containerd.{plugin}"' for plugin in disabled)
    config = base / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{base}/d/root"\nstate = "{base}/d/state"\ndisabled_plugins = [{plugins}]\n'
        f'[grpc]\naddress = "{base}/d.sock"\n[ttrpc]\naddress = "{base}/d.sock.ttrpc"\n'
        f'[proxy_plugins.trees]\ntype = "snapshot"\naddress = "{base}/snapshotd-overlayfs.sock"\n'
        f'[proxy_plugins.blobs]\ntype = "content"\naddress = "{base}/contentd.sock"\n'
    )
    arguments = ("-m", "contentd", "--root", str(base / "root"), "--state", str(base))
    with snapshotd(base), serving(base / "contentd.sock", *arguments), (base / "d.log").open("wb") as log:
        process = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log)
        # Control groups are the machine's: a namespace of this run's own.
        namespace = f"carina-test-plugged-{os.getpid()}"
        try:
            wait_for(base / "d.sock", process)
            yield Ctr(base / "d.sock", namespace)
        finally:
            process.terminate()
            process.wait(20)
            for group in Path("/sys/fs/cgroup").glob(f"*/{namespace}"):
                with contextlib.suppress(OSError):
                    group.rmdir()


@needs_containerd
def test_containerd_keeps_everything_in_our_services(reference: str) -> None:
    """Pull, run, commit of what ran, and removal leave our services with the image, and then with nothing."""
    with directory() as base, containerd_on_our_services(base) as ctr:
        ctr("images", "pull", "--plain-http", "--snapshotter", "trees", reference)
        shown = ctr("run", "--rm", "--snapshotter", "trees", reference, "one", "sh", "-c", "echo new >/file; cat /file")
        assert shown == "new\n"
        snapshots, blobs = base / "root/snapshotd-overlayfs/snapshots", base / "root/contentd/blobs/sha256"
        assert ctr("snapshots", "--snapshotter", "trees", "ls").count("Committed") == 2
        assert len(os.listdir(blobs)) == len(ctr("content", "ls", "-q").split()) == 5
        ctr("images", "rm", "--sync", reference)
        assert ctr("content", "ls", "-q") == ""
        assert os.listdir(snapshots) == []
        assert [path for path in blobs.rglob("*") if path.is_file()] == []


@needs_containerd
@pytest.mark.parametrize("theirs", ["overlayfs", "native"])
def test_a_container_runs_on_containerds_snapshotter(reference: str, theirs: str) -> None:
    """A real containerd as the back end of ours: pulled into it, run on it, removed from it."""
    with directory() as base, containerd(base) as address:
        plugin = f'[proxy_plugins.theirs]\ntype = "snapshot"\naddress = "{address}"\nsnapshotter = "{theirs}"\n'
        with Constellation(config=f'{plugin}namespace = "carina"\nlease = "carina"\n') as carina:
            carina.ctr("images", "pull", "--plain-http", "--snapshotter", "theirs", reference)
            command = ("sh", "-c", "echo new >/file; cat /file")
            shown = carina.ctr("run", "--rm", "--snapshotter", "theirs", reference, "one", *command).output
            assert shown == "new\n"
            there = Ctr(Path(address.removeprefix("unix://")), "carina")
            assert there("snapshots", "--snapshotter", theirs, "ls").count("Committed") == 2
            carina.ctr("images", "rm", "--sync", reference)
            assert "Committed" not in there("snapshots", "--snapshotter", theirs, "ls")


def test_a_snapshotter_that_the_machine_can_not_have_is_skipped(tmp_path: Path) -> None:
    """Everything else comes up; clients see why, and are told it when they use it."""
    if filesystem_type(tmp_path) == "btrfs":
        pytest.skip("this machine can have it")
    config = "[services.snapshots.overlayfs]\n[services.snapshots.btrfs]\n"
    with Constellation(config=config) as carina:
        lines = carina.ctr("plugins", "ls").output.splitlines()
        found = {line.split()[1]: line.split()[-1] for line in lines if line.startswith("io.containerd.snapshotter")}
        assert found == {"overlayfs": "ok", "btrfs": "skip"}
        assert "subvolumes need btrfs" in carina.carina("plugins", "ls").output
        refused = carina.ctr("snapshots", "--snapshotter", "btrfs", "prepare", "key", check=False)
        assert "subvolumes need btrfs" in refused.error


def test_a_container_runs_on_a_very_tall_stack(reference: str) -> None:
    """The options of its overlay outgrow a page: whoever mounts it, we or the shim, must cope."""
    config = "[services.snapshots.overlayfs]\n[snapshots.overlayfs]\ndurable = false\n"
    with Constellation(config=config) as carina:
        carina.ctr("images", "pull", "--plain-http", reference)
        carina.ctr("containers", "create", reference, "tall", "cat", f"/layers/{HEIGHT}")
        asyncio.run(_raise_stack(carina))
        assert carina.ctr("tasks", "start", "tall").output == "top\n"


async def _raise_stack(carina: Constellation) -> None:
    """Put the container's snapshot on a stack of layers of a file each."""
    channel = connect(carina.address)
    snapshotter = RemoteSnapshotter(channel, "overlayfs")
    with context.within(namespace=carina.namespace):
        parent = (await snapshotter.stat("tall")).parent
        await snapshotter.remove("tall")
        for number in range(1, HEIGHT + 1):
            parent = await _add_layer(snapshotter, number, parent)
        mounts = await snapshotter.prepare("tall", parent)
    channel.close()
    assert sum(len(option) for mount in mounts for option in mount.options) > 4096
    with mounted(mounts) as tree:
        assert len(os.listdir(tree / "layers")) == HEIGHT


async def _add_layer(snapshotter: Snapshotter, number: int, parent: str) -> str:
    (mount,) = await snapshotter.prepare(f"active-{number}", parent, KEPT)
    upper = next(option.removeprefix("upperdir=") for option in mount.options if option.startswith("upperdir="))
    layers = Path(upper) / "layers"
    layers.mkdir()
    (layers / str(number)).write_text("top\n" if number == HEIGHT else "")
    await snapshotter.commit(f"layer-{number}", f"active-{number}", KEPT)
    return f"layer-{number}"
