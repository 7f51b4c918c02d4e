"""A shim killed while its runtime makes a container: the runtime does not go on with it."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from carina.api.containerd.runc.v1 import Options
from carina.errors import CarinaError
from carina.rpc.codec import encode
from carina.typed import TypedValue
from support.tasks import OWN, RUNC, World, world
from taskd.runtime import RUNC_OPTIONS

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
SLOW = '#!/bin/sh\ncase "$*" in *" create "*) echo x > {mark}; sleep 2;; esac\nexec runc "$@"\n'


def slow_runtime(directory: Path) -> tuple[TypedValue, Path]:
    """Options of a runc that takes two seconds before it makes a container, and the file that says it was asked."""
    program, mark = directory / "slow-runc", directory / "asked"
    program.write_text(SLOW.format(mark=mark))
    program.chmod(0o755)
    return TypedValue(RUNC_OPTIONS, encode(Options(binary_name=str(program)))), mark


def left(carina: World, id: str) -> list[Path]:
    groups = [*Path("/sys/fs/cgroup").glob(f"*/{carina.namespace}/{id}"), Path("/sys/fs/cgroup", carina.namespace, id)]
    files = [carina.bundle(id), *carina.state.glob(f"runc/*/{id}")]
    return [path for path in (*groups, *files) if path.exists()]


@pytest.mark.parametrize("runtime", [RUNC, OWN])
async def test_the_runtime_of_a_killed_shim_goes_on_with_nothing(runtime: str, tmp_path: Path) -> None:
    """The creation fails, and neither then nor later is there a control group, a bundle or a file of the container."""
    async with world(runtime=runtime) as carina, carina.running():
        options, mark = slow_runtime(tmp_path)
        id = carina.add("sleep", "100", options=options)
        async with asyncio.TaskGroup() as group:
            creating = group.create_task(_create(carina, id), name="create")
            async with asyncio.timeout(30):
                while not mark.exists():
                    await asyncio.sleep(0.02)
            for pid in carina.shims():
                os.kill(pid, signal.SIGKILL)
            assert await creating
        await asyncio.sleep(3.5)  # longer than the runtime would have taken
        assert left(carina, id) == []


async def _create(carina: World, id: str) -> bool:
    """Whether it fails."""
    try:
        await carina.tasks.create(id, rootfs=carina.mounts)
    except CarinaError:
        return True
    return False
