"""Health says what is so: of each service, and of each back end, by name, at the service and at the gateway."""

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from carina import context
from carina.api.grpc.health.v1 import HealthCheckRequest, HealthCheckResponse, HealthStub
from carina.errors import CarinaError, NotFound
from carina.rpc.client import connect
from carina.rpc.codec import decode, encode
from support.constellation import Constellation
from support.disk import fill

NAMES = ("", "gatewayd", "metadatad", "imaged", "taskd", "content", "overlayfs", "native")


pytestmark = pytest.mark.timeout(180)  # what is looked at every few seconds takes a few to be seen


@pytest.fixture
def small() -> Iterator[Constellation]:
    """A constellation whose root is a file system of 64 MiB."""
    made = Constellation()
    made.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(made.root)], check=True)
    try:
        with made:
            yield made
    finally:
        subprocess.run(["umount", "--lazy", str(made.root)], check=False, capture_output=True)


async def health(address: str, name: str) -> str:
    """What a service says of a part: SERVING, NOT_SERVING, unknown, or the kind of its error."""
    channel = connect(address)
    try:
        with context.deadline(5):
            answer = await HealthStub(channel).check(HealthCheckRequest(service=name))
    except NotFound:
        return "unknown"
    except CarinaError as error:
        return type(error).__name__
    finally:
        channel.close()
    assert answer.status.name is not None
    return answer.status.name


async def wait_for(address: str, expected: dict[str, str], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while (found := {name: await health(address, name) for name in expected}) != expected:
        assert time.monotonic() < limit, found
        time.sleep(0.1)


async def test_a_full_disk_and_a_read_only_one_are_told(small: Constellation) -> None:
    """Nothing that keeps things is ready while there is no room, though all answer; each is again when there is."""
    await wait_for(small.address, dict.fromkeys(NAMES, "SERVING"))
    filling = fill(small.root)
    without = {"metadatad": "NOT_SERVING", "content": "NOT_SERVING", "overlayfs": "NOT_SERVING"}
    await wait_for(small.address, {"": "SERVING", "gatewayd": "SERVING", "imaged": "NOT_SERVING", **without})
    assert await health(f"unix://{small.state}/contentd.sock", "contentd") == "NOT_SERVING"
    assert await health(f"unix://{small.state}/contentd.sock", "") == "SERVING"
    status = small.carina("status", *small.paths, check=False)
    assert status.status != 0
    assert "not_serving" in next(line for line in status.output.splitlines() if line.startswith("contentd"))
    plugins = small.carina("plugins", "ls").output
    assert "no space left on device" in plugins

    filling.unlink()
    await wait_for(small.address, dict.fromkeys(NAMES, "SERVING"))


async def test_a_read_only_directory_is_told(small: Constellation) -> None:
    """A service whose directory can't be written any more answers and is not ready, alone, and says why."""
    directory = small.root / "contentd"
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
        await wait_for(small.address, {"": "SERVING", "metadatad": "SERVING", "content": "NOT_SERVING"})
        assert "read-only file system" in small.carina("plugins", "ls").output
    finally:
        subprocess.run(["umount", str(directory)], check=True)
    await wait_for(small.address, dict.fromkeys(NAMES, "SERVING"))


async def test_watching_tells_every_change(constellation: Constellation) -> None:
    """A client that watches a back end at the gateway is told when it stops to answer, and when it answers again."""
    pid = next(
        int(line.split()[2])
        for line in constellation.carina("status", *constellation.paths).output.splitlines()
        if line.startswith("snapshotd-native")
    )
    async with grpc.aio.insecure_channel(f"unix:{constellation.socket}") as channel:
        call = channel.unary_stream("/grpc.health.v1.Health/Watch")(
            encode(HealthCheckRequest(service="native")), timeout=60
        )
        changes = _states(call)
        assert await anext(changes) == "SERVING"
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await anext(changes) == "NOT_SERVING"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await anext(changes) == "SERVING"


async def _states(call: AsyncIterator[bytes]) -> AsyncIterator[str | None]:
    async for data in call:
        yield decode(HealthCheckResponse, data).status.name


async def test_a_gateway_without_metadatad_does_not_serve(constellation: Constellation) -> None:
    """The empty name is NOT_SERVING while metadatad stands still, and so is each back end, for nobody can say."""
    found = constellation.carina("status", *constellation.paths).output.splitlines()
    pid = next(int(line.split()[2]) for line in found if line.startswith("metadatad"))
    os.kill(pid, signal.SIGSTOP)
    try:
        expected = {"": "NOT_SERVING", "metadatad": "NOT_SERVING", "content": "NOT_SERVING", "taskd": "SERVING"}
        await wait_for(constellation.address, {**expected, "nobody": "unknown"})
    finally:
        os.kill(pid, signal.SIGCONT)
    await wait_for(constellation.address, dict.fromkeys(NAMES, "SERVING"))


def test_nothing_is_left_of_looking(constellation: Constellation) -> None:
    """Services try their file systems every few seconds, and leave no file there."""
    left = list(Path(constellation.root).rglob(".ready-*"))

    assert left == []
