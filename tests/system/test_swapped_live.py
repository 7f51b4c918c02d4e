"""Stores swapped for other implementations and back, while containers run on them."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.constellation import Constellation
from support.content import containerd, directory
from support.snapshots import DEMO, demo, serving, snapshotd

pytestmark = pytest.mark.timeout(300)
THEIRS = ("--set", "namespace=carina", "--set", "lease=carina")
needs_containerd = pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")


@pytest.fixture
def base() -> Iterator[Path]:
    with directory() as path:
        yield path


@pytest.fixture
def carina(reference: str) -> Iterator[Constellation]:
    """With the image, and a container of it that runs and writes."""
    with Constellation() as running:
        running.ctr("images", "pull", "--plain-http", reference)
        loop = "while sleep 0.1; do date >>/alive; done"
        running.ctr("run", "--detach", reference, "before", "sh", "-c", loop)
        yield running


def _alive(carina: Constellation, container: str = "before") -> int:
    """How many lines the container has written by now."""
    shown = carina.ctr("tasks", "exec", "--exec-id", "count", container, "wc", "-l", "/alive").output
    return int(shown.split()[0])


def _runs(carina: Constellation, reference: str, name: str) -> None:
    shown = carina.ctr("run", "--rm", reference, name, "sh", "-c", "echo new >/file; cat /file").output
    assert shown == "new\n"


@contextlib.contextmanager
def contentd(base: Path) -> Iterator[str]:
    with serving(base / "contentd.sock", "-m", "contentd", "--root", str(base / "root"), "--state", str(base)):
        yield f"unix://{base}/contentd.sock"


def test_snapshots_are_swapped_and_back(carina: Constellation, reference: str, base: Path) -> None:
    """Layers are copied, the running container's snapshot stays where it is mounted, new ones are made at the new."""
    with snapshotd(base):
        there = f"unix://{base}/snapshotd-overlayfs.sock"
        refused = carina.carina("swap", "snapshots.overlayfs", there, check=False)
        assert refused.status == 1
        assert re.search(r"snapshots.overlayfs can't be moved: .* lacks snapshot carina-test-.*sha256:", refused.error)
        assert "carina snapshots copy" in refused.error
        assert carina.carina("snapshots", "copy", "--to", there).output.startswith("2 snapshots copied, ")
        said = carina.carina("swap", "snapshots.overlayfs", there).output
        assert f"snapshots.overlayfs is at {there} now; 1 snapshot in use stays at unix://{carina.state}" in said
        lines = _alive(carina)
        _runs(carina, reference, "during")
        carina.ctr("run", "--detach", reference, "during", "sleep", "1000")
        carina.stop()
        carina.start()
        _runs(carina, reference, "later")
        assert len(carina.ctr("snapshots", "ls").output.splitlines()) == 1 + 2 + 2
        assert _alive(carina) > lines
        carina.ctr("tasks", "kill", "--all", "--signal", "SIGKILL", "during")
        carina.wait_for("tasks", "ls", text="STOPPED")
        carina.ctr("tasks", "rm", "during")
        carina.ctr("containers", "rm", "during")
        said = carina.carina("swap", "snapshots.overlayfs", "--back").output
        assert said == f"snapshots.overlayfs is at unix://{carina.state}/snapshotd-overlayfs.sock now\n"
        lines = _alive(carina)
    _runs(carina, reference, "after")
    assert _alive(carina) > lines
    carina.carina("check")


def test_content_is_swapped_and_back(carina: Constellation, reference: str, base: Path) -> None:
    """Blobs go through descriptors, reads and pulls go on at the new store, and what came meanwhile is copied back."""
    with contentd(base) as there:
        refused = carina.carina("swap", "content", there, check=False)
        assert re.search(r"content can't be moved: .* lacks content sha256:.* and \d more", refused.error)
        assert carina.carina("content", "copy", "--to", there).output.startswith("5 blobs copied, ")
        assert carina.carina("content", "copy", "--to", there).output == "0 blobs copied, 0 B\n"
        assert carina.carina("swap", "content", there).output == f"content is at {there} now\n"
        assert carina.carina("swap", "content", there).output == "nothing has changed\n"
        new = carina.carina("content", "ingest", "new", stdin=b"new").output.strip()
        carina.ctr("content", "label", new, "containerd.io/gc.root=x")
        carina.stop()
        carina.start()
        assert carina.ctr("content", "get", new).output == "new"
        _pulls_anew(carina, reference)
        home = f"unix://{carina.state}/contentd.sock"
        refused = carina.carina("swap", "content", "--back", check=False)
        assert f"{home} lacks content {new}; `carina content copy`" in refused.error
        assert carina.carina("content", "copy", "--to", home).output == "1 blobs copied, 3 B\n"
        assert carina.carina("swap", "content", "--back").output == f"content is at {home} now\n"
    assert carina.ctr("content", "get", new).output == "new"
    _runs(carina, reference, "after")
    assert _alive(carina) > 0


def _pulls_anew(carina: Constellation, reference: str) -> None:
    """Every blob is fetched, and every layer unpacked again, for a namespace of its own."""
    other = f"{carina.namespace}-other"
    carina.carina("--namespace", other, "pull", "--plain-http", reference)
    carina.carina("--namespace", other, "images", "rm", "--sync", reference)


@needs_containerd
def test_the_store_side_is_swapped_for_a_containerd(carina: Constellation, reference: str, base: Path) -> None:
    """Content with the differ, and then the snapshotter too, all at once, are a real containerd's, and ours again."""
    with containerd(base) as there:
        carina.carina("content", "copy", "--to", there, *THEIRS)
        said = carina.carina("swap", "content,diff", there, *THEIRS).output.splitlines()
        assert said == [
            f"{service} is at {there} (namespace carina, lease carina) now" for service in ("content", "diff")
        ]
        carina.ctr("images", "rm", "--sync", reference)
        carina.ctr("images", "pull", "--plain-http", reference)
        _runs(carina, reference, "half")
        carina.carina("swap", "diff", "--back")
        home = f"unix://{carina.state}/contentd.sock"
        carina.carina("content", "copy", "--to", home)
        carina.carina("swap", "content", "--back")
        carina.carina("snapshots", "copy", "--to", there, *THEIRS)
        refused = carina.carina(
            "swap", "content,snapshots.overlayfs,diff", there, "--set", "namespace=none", check=False
        )
        assert "can't be moved" in refused.error
        carina.carina("content", "copy", "--to", there, *THEIRS)
        text = carina.carina("swap", "content,snapshots.overlayfs,diff", there, *THEIRS).output
        assert text.count(f"is at {there} (namespace carina, lease carina) now") == 3
        assert "1 snapshot in use stays at" in text
        _runs(carina, reference, "there")
        _pulls_anew(carina, reference)
        carina.stop()
        carina.start()
        _runs(carina, reference, "later")
        carina.carina("snapshots", "copy", "--to", f"unix://{carina.state}/snapshotd-overlayfs.sock")
        carina.carina("content", "copy", "--to", home)
        text = carina.carina("swap", "content,snapshots.overlayfs,diff", "--back").output
        assert text.count(" now\n") == 3
    _runs(carina, reference, "after")
    assert _alive(carina) > 0
    carina.carina("check")


def test_python_takes_the_place_of_every_store(carina: Constellation, reference: str, base: Path) -> None:
    """A content store, a snapshotter and a differ, each of fewer than a hundred lines, serve pulls and containers."""
    scripts = {name: DEMO.parent / f"{name}.py" for name in ("filecontent", "copysnapshotter", "tardiffer")}
    assert all(len(script.read_text().splitlines()) < 100 for script in scripts.values())
    with contextlib.ExitStack() as stack:
        for name, argument in (("filecontent", base / "blobs"), ("tardiffer", carina.address)):
            stack.enter_context(
                serving(base / f"{name}.sock", str(scripts[name]), str(argument), str(base / f"{name}.sock"))
            )
        stack.enter_context(demo(base))
        carina.carina("content", "copy", "--to", f"{base}/filecontent.sock")
        carina.carina("snapshots", "copy", "--to", f"{base}/demo.sock")
        carina.carina("swap", "content", f"{base}/filecontent.sock")
        carina.carina("swap", "snapshots.overlayfs", f"{base}/demo.sock")
        carina.carina("swap", "diff", f"{base}/tardiffer.sock")
        _runs(carina, reference, "python")
        carina.ctr("images", "rm", "--sync", reference)
        carina.ctr("images", "pull", "--plain-http", reference)
        _runs(carina, reference, "pulled")
        carina.carina("snapshots", "copy", "--to", f"unix://{carina.state}/snapshotd-overlayfs.sock")
        carina.carina("content", "copy", "--to", f"unix://{carina.state}/contentd.sock")
        carina.carina("swap", "content,snapshots.overlayfs,diff", "--back")
    _runs(carina, reference, "after")
    assert _alive(carina) > 0
