"""The recorded disk itself: it loses what was not flushed and nothing else, the same way each time."""

import hashlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.powerloss.disk import TESTS, RecordedDisk, missing

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(missing() not in ("", "root"), reason=f"a recorded disk needs {missing()}"),
]
SIZE = 32 << 20
BLOCK = 4096


@pytest.fixture
def disk() -> Iterator[RecordedDisk]:
    with RecordedDisk(SIZE) as made:
        yield made


def write(path: Path, data: bytes, *, durably: bool) -> None:
    """A new file under its name, as a careful or a careless program makes it."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(data)
        if durably:
            file.flush()
            os.fsync(file.fileno())
    temporary.rename(path)
    if durably:
        sync(path.parent)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def overwrite(path: Path, blocks: range, byte: int) -> None:
    """Write blocks past the page cache, so that they are at the disk, and have it flush nothing."""
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK)
    buffer.write(bytes([byte]) * BLOCK)
    try:
        for block in blocks:
            os.pwrite(fd, buffer, block * BLOCK)
    finally:
        buffer.close()
        os.close(fd)


def test_what_was_flushed_is_in_every_later_cut(disk: RecordedDisk) -> None:
    """A file whose writer has synced it, and its directory, is there and whole whenever the power goes."""
    marks = {}
    for number in range(30):
        write(disk.mountpoint / f"kept-{number}", bytes([number]) * 5000, durably=True)
        marks[number] = disk.mark()
        write(disk.mountpoint / f"careless-{number}", bytes([number]) * 5000, durably=False)

    seen = 0
    for cut in disk.cuts(seed=1, count=12):
        with cut.mounted() as path:
            for number in (number for number, mark in marks.items() if cut.includes(mark)):
                assert (path / f"kept-{number}").read_bytes() == bytes([number]) * 5000, cut
                seen += 1
    assert seen > 30


def test_a_store_that_does_not_sync_is_found_out(disk: RecordedDisk) -> None:
    """Of files that were only written and renamed, some are gone or not whole in a cut after their names were given."""
    marks = {}
    for number in range(30):
        write(disk.mountpoint / f"careless-{number}", bytes([number]) * 5000, durably=False)
        marks[number] = disk.mark()
        if number % 3 == 0:
            write(disk.mountpoint / "other", b"something else that makes the journal go on", durably=True)

    lost = 0
    for cut in disk.cuts(seed=2, count=12):
        with cut.mounted() as path:
            for number in (number for number, mark in marks.items() if cut.includes(mark)):
                file = path / f"careless-{number}"
                lost += not file.exists() or file.read_bytes() != bytes([number]) * 5000
    assert lost > 0


def test_unflushed_writes_are_lost_kept_reordered_and_torn(disk: RecordedDisk) -> None:
    """Between two flushes nothing is certain: a write may be missing before one that is there, or be half there."""
    path = disk.mountpoint / "blocks"
    path.write_bytes(b"\0" * BLOCK * 20)
    sync(path)
    before = disk.mark()
    overwrite(path, range(20), 1)

    outcomes = set()
    for cut in disk.cuts(seed=3, count=25, after=before):
        with cut.mounted() as where:
            data = (where / "blocks").read_bytes()
        blocks = [set(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        written = [number for number, found in enumerate(blocks) if found == {1}]
        outcomes |= {"torn"} if {0, 1} in blocks else set()
        outcomes |= {"none"} if not written else {"some"}
        outcomes |= {"reordered"} if written and written != list(range(len(written))) else set()

    assert outcomes == {"none", "some", "torn", "reordered"}


def test_the_same_seed_gives_the_same_disks(disk: RecordedDisk) -> None:
    """A failure can be seen again; another seed sees something else."""
    for number in range(10):
        write(disk.mountpoint / f"file-{number}", bytes(3000), durably=number % 2 == 0)
    end = disk.mark()

    def images(seed: int) -> list[tuple[str, str]]:
        return [
            (repr(cut), hashlib.sha256(cut.image.read_bytes()).hexdigest())
            for cut in disk.cuts(seed=seed, count=5, before=end)
        ]

    assert images(4) == images(4)
    assert images(4) != images(5)


HOLDER = """
import time
from support.powerloss.disk import RecordedDisk
with RecordedDisk(32 << 20) as disk:
    (disk.mountpoint / "file").write_bytes(b"x" * 100000)
    for cut in disk.cuts(seed=1, count=1):
        with cut.mounted() as path:
            print(disk.mountpoint.parent, flush=True)
            time.sleep(600)
"""


def left(directory: Path) -> list[str]:
    """Mounts, loop devices and files of a recorded disk."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    loops = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return [name for name in (*mounts, *loops) if name.startswith(f"{directory}/")] + list(
        map(str, directory.glob("*"))
    )


def until_gone(directory: Path) -> list[str]:
    limit = time.monotonic() + 30
    while (found := left(directory)) and time.monotonic() < limit:
        time.sleep(0.05)
    return found


def test_nothing_is_left_of_a_test_that_was_killed() -> None:
    """Mounts, loop devices and files go when the process that had the disk is killed."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        directory = Path(holder.stdout.readline().strip())
        used = left(directory)
        holder.send_signal(signal.SIGKILL)

    assert len(used) > 4
    assert until_gone(directory) == []


def test_the_next_keeper_cleans_up_after_one_that_was_killed() -> None:
    """Where the process that holds the mounts is killed itself, they go with the next disk that is made."""
    with RecordedDisk(SIZE) as broken:
        (broken.mountpoint / "file").write_bytes(b"x" * 100_000)
        directory = broken.mountpoint.parent
        used = left(directory)
        os.kill(broken.keeper, signal.SIGKILL)

    with RecordedDisk(SIZE) as disk:
        assert len(used) > 4
        assert until_gone(directory) == []  # where tests run beside each other, another keeper may be at it
        assert len(left(disk.mountpoint.parent)) > 4
