"""A file system on a disk that remembers every write and every flush, and what is left of it when the power goes.

    with RecordedDisk(64 << 20) as disk:
        (disk.mountpoint / "file").write_bytes(b"x")
        os.fsync(...)
        acknowledged = disk.mark()
        ...
        for cut in disk.cuts(seed=1, count=50):
            with cut.mounted() as path:        # the journal is replayed
                if cut.includes(acknowledged):
                    assert (path / "file").read_bytes() == b"x"

The same seed and the same record give the same cuts. `cut` shows itself with what is needed to see it again.
Needs root, /dev/fuse and loop devices: `missing` says what is not there.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from support import scratch
from support.powerloss.keeper import MAKERS, PREFIX
from support.powerloss.record import Replay

TESTS = Path(__file__).resolve().parents[2]


def missing(fs: str = "ext4") -> str:
    """What a recorded disk needs and this machine does not have; empty where nothing is missing."""
    needed = ["/dev/fuse", "/dev/loop-control"]
    absent = [path for path in needed if not Path(path).exists()]
    absent += [program for program in (MAKERS[fs][0], "losetup") if shutil.which(program) is None]
    return ", ".join(absent) if os.geteuid() == 0 else "root"


class RecordedDisk:
    def __init__(self, size: int = 64 << 20, *, fs: str = "ext4") -> None:
        self._size = size
        self._fs = fs

    @property
    def mountpoint(self) -> Path:
        return self._directory / "mnt"

    @property
    def keeper(self) -> int:
        """The process that has the mounts."""
        return self._keeper.pid

    def mark(self) -> int:
        """This moment: what was acknowledged before is on the disk in every cut that includes it."""
        return (self._directory / "record").stat().st_size

    def cuts(self, seed: int, count: int, *, after: int = 0, before: int | None = None) -> Iterator["Cut"]:
        """Disks as they may be found after the power went at `count` moments between two marks, in their order."""
        chance = random.Random(seed)
        base, record = self._directory / "base", self._directory / "record"
        replay = Replay(base, record, self._directory)
        try:
            end = self.mark() if before is None else before
            for turn, number in enumerate(replay.choose(chance, count, after=after, before=end)):
                image = self._directory / f"image-{turn}"
                position, waiting, kept = replay.cut(number, chance, image)
                yield Cut(self, image, seed=seed, turn=turn, position=position, waiting=waiting, kept=kept)
                image.unlink()
        finally:
            replay.close()

    def ask(self, **request: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        self._expect_ok()

    def _expect_ok(self) -> None:
        assert self._keeper.stdout is not None
        answer = self._keeper.stdout.readline().strip()
        if answer != "ok":
            raise OSError(answer or "the keeper of the disk has died")

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch.parent()))
        command = [sys.executable, "-m", "support.powerloss.keeper", str(self._directory), str(self._size), self._fs]
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
        self._keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        try:
            self._expect_ok()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self._keeper.communicate(timeout=120)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    seed: int
    turn: int
    position: int
    """The moment at which the power went."""
    waiting: int
    """Writes that no flush had followed."""
    kept: int
    """How many of them are there as a whole."""


class Cut:
    """The disk after a loss of power; only until the next one is taken."""

    def __init__(
        self, disk: RecordedDisk, image: Path, *, seed: int, turn: int, position: int, waiting: int, kept: int
    ) -> None:
        self._disk = disk
        self._image = image
        self._shown = _Shown(seed=seed, turn=turn, position=position, waiting=waiting, kept=kept)

    @property
    def image(self) -> Path:
        return self._image

    @property
    def position(self) -> int:
        return self._shown.position

    def includes(self, mark: int) -> bool:
        return mark <= self.position

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The file system on it, until the end of the block."""
        with tempfile.TemporaryDirectory(prefix="cut-", dir=self._image.parent) as target:
            self._disk.ask(mount=str(self._image), at=target)
            try:
                yield Path(target)
            finally:
                self._disk.ask(unmount=target)

    def __repr__(self) -> str:
        return str(self._shown)
