"""No entry leaves the tree: containerd's list of escapes, and races.

The applier runs here without any confinement, except where a test says that it is a worker's.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from carina.errors import CarinaError, Internal, InvalidArgument
from carina.mount import Mount
from support.breakouts import LINKS, OVER, all_users
from support.layers import Layer, apply_here, apply_there, bind

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"outside")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def _is_untouched(root: Path) -> bool:
    outside = root.parent
    return (
        sorted(os.listdir(outside)) == ["etc", "root"]
        and os.listdir(outside / "etc") == ["passwd"]
        and (outside / "etc/passwd").read_bytes() == b"outside"
        and (outside / "etc/passwd").stat().st_nlink == 1
    )


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
@pytest.mark.parametrize("name", LINKS)
def test_links_lead_to_places_inside(root: Path, name: str, overlay: bool) -> None:
    """Absolute and climbing links resolve below the root, and what is outside stays as it was."""
    layer, checks = LINKS[name]
    apply_here(layer.bytes(), root, overlay=overlay)
    assert [check(root) for check in checks] == [True] * len(checks)
    assert _is_untouched(root)


@pytest.mark.parametrize("name", OVER)
def test_entries_replace_what_was_there(root: Path, name: str) -> None:
    """Links, directories and whiteouts on top of an older tree change that tree and nothing behind its links."""
    prepare, layer, checks = OVER[name]
    prepare(root)
    apply_here(layer.bytes(), root)
    assert [check(root) for check in checks] == [True] * len(checks)
    assert _is_untouched(root)


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
@pytest.mark.parametrize("name", [".wh...", "etc/.wh...", ".wh..", "etc/.wh..", ".wh.", "etc/.wh."])
def test_whiteouts_of_directories_on_the_way_are_refused(root: Path, name: str, overlay: bool) -> None:
    """WhiteoutRootParent, WhiteoutParent, WhiteoutRoot, WhiteoutCurrentDirectory: nothing is removed."""
    all_users(root)
    with pytest.raises(InvalidArgument, match="whiteout"):
        apply_here(Layer().file(name).bytes(), root, overlay=overlay)
    assert (root / "etc/passwd").read_bytes() == b"all users"
    assert _is_untouched(root)


def test_a_hard_link_to_a_symbolic_link_changes_no_mode(root: Path) -> None:
    """HardlinkSymlinkChmod: the mode in the header of a hard link is not set through the link that it names."""
    victim = root.parent / "etc/passwd"
    victim.chmod(0o400)
    apply_here(Layer().symlink(str(victim), "/tmp/x").link("/tmp/x", "sketchy", mode=0o777).bytes(), root)
    assert victim.stat().st_mode & 0o777 == 0o400
    assert os.readlink(root / "sketchy") == str(victim)


def test_a_directory_replaced_by_a_link_is_not_remembered(root: Path) -> None:
    """What was known of a path is forgotten when an entry replaces one of its directories."""
    layer = (
        Layer()
        .directory("a")
        .file("a/x", b"1")
        .symlink(str(root.parent / "etc"), "a")
        .file("a/passwd", b"evil")
        .file("a/y", b"evil")
    )
    apply_here(layer.bytes(), root)
    assert _is_untouched(root)


SWAPPER = """
import os, sys, time
os.chdir(sys.argv[1]); end = time.monotonic() + 20
print(flush=True)
while time.monotonic() < end and not os.path.exists("stop"):
    try:
        os.rename("root/d", "root/e"); os.symlink(sys.argv[2], "root/d")
        os.unlink("root/d"); os.rename("root/e", "root/d")
    except OSError: pass
"""


def test_a_directory_swapped_for_a_link_meanwhile_lets_nothing_out(root: Path, tmp_path: Path) -> None:
    """While another process keeps replacing a directory with a link to the outside, nothing appears there."""
    (root / "d/s").mkdir(parents=True)
    (root.parent / "etc/s").mkdir()
    layer = Layer()
    for number in range(1500):
        layer.file(f"d/s/f{number}", b"evil").file(f"x{number}/y", b"").file(f"d/g{number}", b"evil")
    archive = layer.bytes()
    swapper = subprocess.Popen(
        [sys.executable, "-c", SWAPPER, str(tmp_path), str(root.parent / "etc")], stdout=subprocess.PIPE
    )
    assert swapper.stdout is not None
    try:
        swapper.stdout.readline()
        for _ in range(3):
            try:
                apply_here(archive, root)
            except InvalidArgument:
                continue
    finally:
        (tmp_path / "stop").touch()
        swapper.wait(20)
        swapper.stdout.close()
    assert sorted(os.listdir(root.parent / "etc")) == ["passwd", "s"]
    assert os.listdir(root.parent / "etc/s") == []


RACER = """
import os, sys, time
root, outside = sys.argv[1:]
end = time.monotonic() + 120
print(flush=True)
while time.monotonic() < end and not os.path.exists(root + ".stop"):
    for name in ("etc", "localetc", "d", "dir", "a"):
        path, aside = root + "/" + name, root + "/aside"
        try:
            os.rename(path, aside)
            os.symlink(outside, path)
            os.unlink(path)
            os.rename(aside, path)
        except OSError:
            pass
"""


@contextmanager
def _racing(root: Path) -> Iterator[None]:
    """Another process keeps replacing directories of the tree with links to the outside."""
    stop = root.with_name(root.name + ".stop")
    racer = subprocess.Popen([sys.executable, "-c", RACER, str(root), str(root.parent / "etc")], stdout=subprocess.PIPE)
    assert racer.stdout is not None
    try:
        racer.stdout.readline()
        yield
    finally:
        stop.touch()
        racer.wait(30)
        racer.stdout.close()
        stop.unlink()


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
def test_no_case_leads_outside_while_directories_are_swapped(root: Path, overlay: bool) -> None:
    """Every case of the list, while another process keeps replacing the tree's directories with links to the outside:
    each ends, well or with an error of the domain, and nothing outside has changed."""
    layers = [layer for layer, _ in LINKS.values()] + [layer for _, layer, _ in OVER.values()]
    finished = 0
    with _racing(root):
        for layer in layers * 4:
            try:
                apply_here(layer.bytes(), root, overlay=overlay)
            except CarinaError:
                continue
            finished += 1
    assert _is_untouched(root)
    assert finished > 0


async def test_a_worker_stays_inside_while_directories_are_swapped(root: Path) -> None:
    """The same against the confined process, in plain form and in overlay form, whiteouts of the way up included."""
    odd = [Layer().file(name) for name in (".wh...", "etc/.wh..", ".wh.")]
    layers = [layer for layer, _ in LINKS.values()] + [layer for _, layer, _ in OVER.values()] + odd
    upper = Mount(type="overlay", source="overlay", options=(f"upperdir={root}",))
    results: list[bool] = []

    async def worker(cases: Iterator[tuple[int, Layer]]) -> None:
        for number, layer in cases:
            try:
                await apply_there(layer.bytes(), upper if number % 2 else bind(root))
            except Internal:
                raise
            except CarinaError:
                results.append(False)
            else:
                results.append(True)

    with _racing(root):
        cases = enumerate(layers)
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(worker(cases), name=f"apply {number}")
    assert _is_untouched(root)
    assert len(results) == len(layers)
    assert any(results)


ODD_MARKS = {
    "at the root": Layer().file("new").file(".wh..wh..opq"),
    "where no directory was": Layer().file("deep/er/.wh..wh..opq").file("deep/er/new"),
    "through a link to the outside": Layer().symlink("/../../etc", "link").file("link/.wh..wh..opq").file("link/new"),
    "as a directory": Layer().directory("d/.wh..wh..opq").file("d/new"),
    "as a link": Layer().directory("d").symlink("/etc", "d/.wh..wh..opq").file("d/new"),
    "below itself": Layer().file("d/.wh..wh..opq/new"),
    "of aufs": Layer().directory(".wh..wh.plnk").file(".wh..wh.plnk/1").file(".wh..wh.aufs").file("new"),
}


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
@pytest.mark.parametrize("place", ODD_MARKS)
async def test_opaque_marks_in_odd_places(root: Path, place: str, overlay: bool) -> None:
    """A mark for an opaque directory, wherever it stands and whatever it is: a worker makes no file of that name at
    its place, and what is outside stays."""
    all_users(root)
    mount = Mount(type="overlay", source="overlay", options=(f"upperdir={root}",)) if overlay else bind(root)
    with suppress(InvalidArgument):
        await apply_there(ODD_MARKS[place].bytes(), mount)
    assert _is_untouched(root)
    names = [name for _, directories, files in os.walk(root) for name in (*directories, *files)]
    assert [name for name in names if name.startswith(".wh.")] == ([".wh..wh..opq"] if place == "below itself" else [])
