"""taskd without descriptors to spare: what can't be undone at once is undone as soon as it can."""

import asyncio
import os
import resource

import pytest

from carina import context
from carina.errors import CarinaError
from support.tasks import OWN, RUNC, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.mark.parametrize("runtime", [RUNC, OWN])
async def test_nothing_stays_of_what_failed_for_want_of_descriptors(runtime: str) -> None:
    """Tasks whose creation fails with any number of free descriptors leave no bundle and no shim; ids are free."""
    async with world(runtime=runtime, start_seconds=3) as carina:
        await carina.start_process()
        assert carina.process is not None
        pid = carina.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pid}/fd"))
        ids, failed = [], 0
        for free in range(0, 24, 3):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + free, before[1]))
            ids.append(carina.add("sleep", "100", id=f"few-{free}"))
            try:
                with context.deadline(20):
                    await carina.tasks.create(ids[-1], rootfs=carina.mounts)
            except CarinaError:
                failed += 1
            else:
                await carina.tasks.kill(ids.pop(), 9)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert failed > 0

        async with asyncio.timeout(60):
            while [id for id in ids if carina.bundle(id).exists()]:
                await asyncio.sleep(0.1)
            for id in ids:
                while True:
                    try:
                        await carina.tasks.create(id, rootfs=carina.mounts)
                        break
                    except CarinaError:
                        await asyncio.sleep(0.2)
                await carina.tasks.start(id)
                await carina.tasks.kill(id, 9)
                await carina.tasks.wait(id)
                await carina.tasks.delete(id)
