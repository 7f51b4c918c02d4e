"""Layers made from an overlay's upper directory are those that a walk over both trees makes, byte by byte."""

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carina.layer.compare import changes
from carina.layer.compression import OCI_LAYER, OCI_LAYER_ZSTD
from carina.layer.process import Written, diff
from carina.layer.upperdir import difference, opaque
from carina.layer.writer import LayerWriter
from carina.mount import Mount
from support.layers import bind

pytestmark = pytest.mark.root

PATHS = ["a", "b", "c", "a/a", "a/b", "a/c", "a/a/a", "a/a/b", "b/a", "b/c", "b/b/a", "c/a", "c/b"]
TIMES = [1_700_000_000 * 10**9, 1_700_000_000 * 10**9 + 5, 1_600_000_000 * 10**9]
Step = tuple[str, str, str, int]
STEP = st.tuples(
    st.sampled_from("write same directory remove replace rename link symlink mode owner attribute fifo touch".split()),
    st.sampled_from(PATHS),
    st.sampled_from(PATHS),
    st.integers(0, 7),
)
STEPS = st.lists(STEP, min_size=1, max_size=12)


def _write(path: Path, other: Path, number: int) -> None:
    # A FIFO nobody reads is not waited for.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644), "wb") as file:
        file.write(b"x" * number)
    os.utime(path, ns=(0, TIMES[number % 3]))


def _same(path: Path, other: Path, number: int) -> None:
    """Written again, with what was in it."""
    if not path.is_file():
        return
    status, data = path.lstat(), path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(0, status.st_mtime_ns))


def _directory(path: Path, other: Path, number: int) -> None:
    path.mkdir(parents=True)


def _remove(path: Path, other: Path, number: int) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replace(path: Path, other: Path, number: int) -> None:
    """A directory where something else, or another directory, was: an opaque one."""
    _remove(path, other, number)
    path.mkdir()
    (path / "a").write_bytes(b"new")


def _attribute(path: Path, other: Path, number: int) -> None:
    os.setxattr(path, f"user.{number % 2}", b"v" * number)


STEPS_DONE: dict[str, Callable[[Path, Path, int], object]] = {
    "write": _write,
    "same": _same,
    "directory": _directory,
    "remove": _remove,
    "replace": _replace,
    "rename": lambda path, other, number: path.rename(other),
    "link": lambda path, other, number: os.link(path, other, follow_symlinks=False),
    "symlink": lambda path, other, number: path.symlink_to(f"to{number}"),
    "mode": lambda path, other, number: path.chmod(0o700 + number),
    "owner": lambda path, other, number: os.lchown(path, number % 2, number),
    "attribute": _attribute,
    "fifo": lambda path, other, number: os.mkfifo(path),
    "touch": lambda path, other, number: os.utime(path, ns=(0, TIMES[number % 3])),
}


def _base(tree: Path) -> None:
    """Something to change: files in three levels, two of them with two names."""
    for path in ("a/a/a", "a/b", "b/b/a", "c/a"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        _write(tree / path, tree, len(path))
    os.link(tree / "a/a/a", tree / "a/c")
    os.link(tree / "a/b", tree / "b/c")


def _change(tree: Path, steps: Sequence[Step]) -> None:
    for verb, path, other, number in steps:
        with contextlib.suppress(OSError):
            STEPS_DONE[verb](tree / path, tree / other, number)


@contextlib.contextmanager
def _mounted(mounts: Sequence[Mount], place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    [mount] = mounts
    options = ",".join(mount.options)
    subprocess.run(["mount", "-t", mount.type, mount.source, "-o", options, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _memory(place: Path) -> AbstractContextManager[Path]:
    """A directory whose overlays can be unmounted without waiting for a disk."""
    return _mounted([Mount(type="tmpfs", source="tmpfs", options=("mode=0700",))], place)


def _overlay(lowers: Sequence[Path], upper: Path | None = None, *options: str) -> list[Mount]:
    found = [f"lowerdir={':'.join(map(str, lowers))}", *options]
    if upper is not None:
        found += [f"upperdir={upper}", f"workdir={upper}.work", "index=off"]
    return [Mount(type="overlay", source="overlay", options=tuple(found))]


def _view(layers: Sequence[Path]) -> list[Mount]:
    """As snapshotters answer it."""
    if len(layers) == 1:
        return [Mount(type="bind", source=str(layers[0]), options=("ro", "rbind"))]
    return _overlay(layers)


def _layer(directory: Path, name: str, below: Sequence[Path], steps: Sequence[Step], *options: str) -> Path:
    """The upper directory that remains of a container which did `steps` on the layers `below`."""
    made = directory / name
    made.mkdir()
    if not below:
        _base(made)
        _change(made, steps)
        return made
    Path(f"{made}.work").mkdir()
    with _mounted(_overlay(below, made, *options), directory / "tree") as tree:
        _change(tree, steps)
    return made


def _written(directory: Path, lower: Sequence[Mount], upper: Sequence[Mount], only: Path | None) -> bytes | None:
    """The layer, made in this process; None where the directory `only` is not understood."""
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> int:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            return descriptor

        below = opened(stack.enter_context(_mounted(lower, directory / "lower")))
        above = opened(stack.enter_context(_mounted(upper, directory / "upper")))
        told = {}
        if only is not None:
            names = opened(only)
            found = opaque(names, user_attributes=False)
            if found is None:
                return None
            told = {"only": names, "opaque": found}
        with open(directory / "made", "wb") as file:
            LayerWriter(file.fileno(), kind="none", latest=None).write(changes(below, above, **told))  # type: ignore[arg-type]
    return (directory / "made").read_bytes()


def _words(mounts: Sequence[Mount]) -> list[tuple[Any, ...]]:
    return [(mount.type, mount.source, mount.target, list(mount.options)) for mount in mounts]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers=st.lists(STEPS, min_size=1, max_size=3), steps=STEPS, committed=st.booleans())
def test_random_changes_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[Step]], steps: list[Step], committed: bool
) -> None:
    """Whatever was done, on however many layers, in a container or in a committed layer: both walks write the same."""
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as name, _memory(Path(name)) as directory:
        below: list[Path] = []
        for number, done in enumerate(layers):
            below.insert(0, _layer(directory, f"l{number}", below, done))
        top = _layer(directory, "top", below, steps)
        upper = _overlay([top, *below]) if committed else _overlay(below, top)
        assert difference(_words(_view(below)), _words(upper)) == str(top)
        quick = _written(directory, _view(below), upper, top)
        assert quick is not None
        assert quick == _written(directory, _view(below), upper, None)


async def _diffed(
    directory: Path, lower: Sequence[Mount], upper: Sequence[Mount], **wanted: Any
) -> tuple[Written, bytes]:
    with open(directory / "layer", "wb") as file:
        written = await diff(file.fileno(), lower, upper, **wanted)
    return written, (directory / "layer").read_bytes()


def _elsewhere(mounts: Sequence[Mount]) -> list[Mount]:
    """The same mounts in other words."""
    [mount] = mounts
    options = [
        option.replace("lowerdir=/", "lowerdir=//", 1) if option.startswith("lowerdir=") else option
        for option in mount.options
    ]
    return [replace(mount, source="/" + mount.source if mount.type == "bind" else "overlay", options=tuple(options))]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("media_type", ["", OCI_LAYER, OCI_LAYER_ZSTD])
async def test_a_worker_looks_where_changes_are(tmp_path: Path, media_type: str, count: int) -> None:
    """The layer has the bytes that the longer way gives it, in every compression, with the latest time asked for."""
    latest = datetime(2021, 1, 1, tzinfo=UTC)
    steps: list[Step] = [("replace", "a/a", "", 0), ("remove", "b/c", "", 0), ("write", "c/b", "", 3)]
    below: list[Path] = []
    for number in range(count):
        below.insert(0, _layer(tmp_path, f"l{number}", below, [("owner", "c/a", "", number)]))
    upper = _overlay(below, _layer(tmp_path, "top", below, steps))
    wanted = {"media_type": media_type, "source_date_epoch": latest}
    quick, data = await _diffed(tmp_path, _view(below), upper, **wanted)
    slow, same = await _diffed(tmp_path, _elsewhere(_view(below)), upper, **wanted)
    assert (quick.whole, slow.whole) == (False, True)
    assert quick._replace(whole=True) == slow
    assert data == same


@pytest.mark.parametrize("option", ["redirect_dir=on", "metacopy=on"])
async def test_what_only_the_kernel_can_follow_is_walked_whole(tmp_path: Path, option: str) -> None:
    """A renamed directory that stays below, and a file whose data do, make the worker walk both trees."""
    below = [_layer(tmp_path, "below", [], [])]
    steps: list[Step] = [("rename", "b", "n", 0), ("mode", "c/a", "", 1)]
    top = _layer(tmp_path, "top", below, steps, option)
    upper = _overlay(below, top, *(["metacopy=on"] if option == "metacopy=on" else []))
    written, data = await _diffed(tmp_path, _view(below), upper, media_type=OCI_LAYER)
    slow, same = await _diffed(tmp_path, _elsewhere(_view(below)), upper, media_type=OCI_LAYER)
    assert written.whole
    assert (written, data) == (slow, same)


async def test_mounts_below_an_upper_directory_are_not_in_the_layer(tmp_path: Path) -> None:
    """What somebody mounted there is hidden from the overlay, and from the walk."""
    below = [_layer(tmp_path, "below", [], [])]
    upper = _overlay(below, top := _layer(tmp_path, "top", below, [("write", "a/b", "", 1)]))
    expected = await _diffed(tmp_path, _view(below), upper, media_type=OCI_LAYER)
    with _memory(top / "a") as covered:
        (covered / "a").write_bytes(b"covers")
        assert await _diffed(tmp_path, _view(below), upper, media_type=OCI_LAYER) == expected
    assert not expected[0].whole


def test_whiteouts_of_a_lone_layer_are_not_there(tmp_path: Path) -> None:
    """The mark that hides something further below is neither a file of the lower tree nor one of the upper."""
    below = [_layer(tmp_path, "below", [], [])]
    os.mknod(below[0] / "gone", stat.S_IFCHR, 0)
    upper = _overlay(below, top := _layer(tmp_path, "top", below, []))
    assert _written(tmp_path, _view(below), upper, top) == bytes(1024)
    assert _written(tmp_path, _view(below), upper, None) == bytes(1024)
    assert _written(tmp_path, _view(below), [bind(below[0])], None) == bytes(1024)


UPPER = ("upperdir=/u", "workdir=/w", "index=off")


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (("bind", "/a", ()), ("lowerdir=/a", *UPPER), "/u"),
        (("bind", "/a", ("ro", "rbind")), ("lowerdir=/a", *UPPER, "volatile"), "/u"),
        (("bind", "/a", ()), ("lowerdir=/u:/a",), "/u"),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/a:/b", *UPPER), "/u"),
        (("overlay", "o", ("lowerdir=/a:/b", "userxattr")), ("lowerdir=/a:/b", "userxattr", *UPPER), "/u"),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/u:/a:/b",), "/u"),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/a:/b", *UPPER[:2]), ""),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/b:/a", *UPPER), ""),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/a:/b", "userxattr", *UPPER), ""),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/a:/b", "metacopy=on", *UPPER), ""),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/a:/b", "uidmap=0:1:1", "gidmap=0:1:1", *UPPER), ""),
        (("overlay", "o", ("lowerdir=/a:/b", *UPPER)), ("lowerdir=/u:/a:/b", *UPPER), ""),
        (("overlay", "o", ("lowerdir=/a:/b",)), ("lowerdir=/v:/u:/a:/b",), ""),
        (("overlay", "o", ("lowerdir=/a::/b",)), ("lowerdir=/a::/b", *UPPER), ""),
        (("overlay", "o", ("lowerdir=/a\\:/b",)), ("lowerdir=/a\\:/b", *UPPER), ""),
        (("bind", "a", ()), ("lowerdir=a", *UPPER), ""),
        (("bind", "/a", ("uidmap=0:1:1",)), ("lowerdir=/a", *UPPER), ""),
        (("bind", "/a", ()), ("lowerdir=/a", "upperdir=/v", *UPPER), ""),
        (("bind", "/a", ()), ("lowerdir=/a", "upperdir=/u,lowerdir=/b", "index=off"), ""),
        (("tmpfs", "/a", ()), ("lowerdir=/a", *UPPER), ""),
    ],
)
def test_only_one_directory_more_will_do(
    lower: tuple[str, str, tuple[str, ...]], upper: tuple[str, ...], expected: str
) -> None:
    """Other layers, options that change what is shown, and names that may mean something else take the longer way."""
    kind, source, options = lower
    assert difference([(kind, source, "", list(options))], [("overlay", "overlay", "", list(upper))]) == expected
    assert difference([], [("overlay", "overlay", "", list(upper))]) == ""
    assert difference([(kind, source, "below", list(options))], [("overlay", "overlay", "", list(upper))]) == ""
