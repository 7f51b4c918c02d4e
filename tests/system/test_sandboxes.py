"""Sandboxes through the gateway, as a client of containerd 2 has them: a record, and a shim for it."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from carina import context
from carina.api.containerd.services.sandbox import v1 as wire
from carina.containers import Container
from carina.containers.client import RemoteContainerStore
from carina.errors import NotFound
from carina.mount import Mount
from carina.rpc.client import connect
from carina.sandboxes import Sandbox
from carina.sandboxes.client import RemoteSandboxStore
from carina.tasks.client import RemoteTaskService
from carina.typed import Runtime
from support.constellation import Constellation
from support.spec import make_rootfs, spec

pytestmark = pytest.mark.root

OWN = "io.containerd.carina.v1"


async def test_a_sandbox_of_a_record(constellation: Constellation, tmp_path: Path) -> None:
    """The record comes from the store, a container that names it runs in it, and the log has its events."""
    await asyncio.to_thread(make_rootfs, tmp_path / "rootfs")
    channel = connect(constellation.address)
    store, controller = RemoteSandboxStore(channel), wire.ControllerStub(channel)
    containers, tasks = RemoteContainerStore(channel), RemoteTaskService(channel)
    try:
        with context.within(namespace=constellation.namespace), context.deadline(120):
            with pytest.raises(NotFound, match="pod-1"):
                await controller.create(wire.ControllerCreateRequest(sandbox_id="pod-1", sandboxer="shim"))
            await store.create(Sandbox(id="pod-1", runtime=Runtime(name=OWN), sandboxer="shim"))
            await controller.create(wire.ControllerCreateRequest(sandbox_id="pod-1", sandboxer="shim"))
            started = await controller.start(wire.ControllerStartRequest(sandbox_id="pod-1", sandboxer="shim"))
            container = Container(
                id="in-pod", runtime=Runtime(name=OWN), spec=spec(constellation.namespace, "in-pod", "sleep", "100")
            )
            await containers.create(replace(container, sandbox="pod-1"))
            await tasks.create("in-pod", rootfs=[Mount(type="bind", source=f"{tmp_path}/rootfs", options=("rbind",))])
            pid = await tasks.start("in-pod")
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            assert int(status[1]) == started.pid
            await controller.stop(wire.ControllerStopRequest(sandbox_id="pod-1", sandboxer="shim", timeout_secs=1))
            ended = await controller.wait(wire.ControllerWaitRequest(sandbox_id="pod-1", sandboxer="shim"))
            assert ended.exit_status == 0
            await tasks.delete("in-pod")
            await containers.delete("in-pod")
            await controller.shutdown(wire.ControllerShutdownRequest(sandbox_id="pod-1", sandboxer="shim"))
            await store.delete("pod-1")
    finally:
        channel.close()
    constellation.wait_for("plugins", "ls", text="io.containerd.sandbox.controller.v1")
    printed = constellation.carina(
        "events", "--since", "oldest", "--no-follow", "--format", "json", 'topic~="/sandboxes/.*"'
    ).output.splitlines()
    topics = [line["topic"] for line in map(json.loads, printed) if line["event"].get("sandbox_id") == "pod-1"]

    assert topics == ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]
