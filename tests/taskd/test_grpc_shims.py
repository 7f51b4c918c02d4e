"""Shims that speak gRPC instead of ttrpc."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from carina.errors import AlreadyExists, CarinaError, NotFound
from carina.tasks import Status, Stdio
from support.grpc_shim import BEHIND, NAME, install
from support.spec import exec_spec
from support.tasks import fifo_reader, world

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which(BEHIND) is None, reason=f"{BEHIND} is not installed")]


async def test_a_task_of_a_shim_that_speaks_grpc(tmp_path: Path) -> None:
    """Its whole life works as over ttrpc, across a restart of taskd, and its shim is named by an absolute path."""
    binary = await asyncio.to_thread(install, tmp_path / "shims")
    async with world() as carina:
        async with carina.local():
            id = await carina.run("sleep", "100", runtime=str(binary))
            with pytest.raises(AlreadyExists):
                await carina.tasks.create(id)
            stdout = carina.directory / "stdout"
            async with fifo_reader(stdout) as out:
                stdio = Stdio(stdout=str(stdout), stderr="/dev/null")
                await carina.tasks.exec(id, "e", exec_spec("sh", "-c", "echo over gRPC; exit 3"), stdio)
                await carina.tasks.start(id, "e")
                assert (await carina.tasks.wait(id, "e")).status == 3
                assert (await carina.tasks.delete(id, "e")).status == 3
                assert await out == b"over gRPC\n"
            await carina.tasks.exec(id, "absent", exec_spec("absent"))
            with pytest.raises(CarinaError, match="executable file not found"):
                await carina.tasks.start(id, "absent")
            with pytest.raises(NotFound):
                await carina.tasks.get(id, "other")

        async with carina.local():
            assert (await carina.tasks.get(id)).status is Status.RUNNING
            await carina.tasks.kill(id, signal.SIGKILL)
            assert (await carina.tasks.wait(id)).status == 137
            assert (await carina.tasks.delete(id)).status == 137
            await carina.events.until("/tasks/delete", id)
            assert len(carina.events.exits(id)) == 2
            assert not carina.bundle(id).exists()


async def test_a_shim_that_speaks_grpc_dies(tmp_path: Path) -> None:
    """Its container is ended and reported as after the death of any shim."""
    binary = await asyncio.to_thread(install, tmp_path / "shims")
    async with world() as carina, carina.local():
        id = await carina.run("sleep", "100", runtime=str(binary))
        waiting = asyncio.create_task(carina.tasks.wait(id))
        # The one in front first: it would tell of the other's death.
        for pid in sorted(carina.shims(), key=lambda pid: NAME not in Path(f"/proc/{pid}/cmdline").read_text()):
            os.kill(pid, signal.SIGKILL)
        assert (await waiting).status == 137
        await carina.events.until("/tasks/delete", id)
        async with asyncio.timeout(30):
            while carina.bundle(id).exists():  # removed after the event
                await asyncio.sleep(0.02)
