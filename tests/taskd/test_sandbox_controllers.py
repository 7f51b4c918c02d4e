"""Sandbox controllers that are plugged in: taskd passes calls on by the sandboxer's name."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from carina import context
from carina.api.containerd.services.sandbox import v1 as wire
from carina.api.containerd.types import Sandbox as WireSandbox
from carina.backends import Backend
from carina.backends.plugged import Plugged
from carina.errors import AlreadyExists, DeadlineExceeded, NotFound, Unavailable, Unimplemented
from carina.events import Envelope
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.sandboxes import Sandbox, State
from carina.sandboxes.server import ControllersService
from support.listed import Listed
from taskd.controllers import AllControllers
from taskd.outbox import Subject

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)


class Controller(wire.ControllerBase):
    """Notes what it is asked, and in which namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[tuple[str, str | None]] = []

    def _note(self, method: str) -> None:
        self.asked.append((method, context.current().namespace))

    async def create(self, message: wire.ControllerCreateRequest) -> wire.ControllerCreateResponse:
        self._note("create")
        if message.sandbox_id == "taken":
            raise AlreadyExists("sandbox 'taken' exists")
        return wire.ControllerCreateResponse(sandbox_id=message.sandbox_id)

    async def start(self, message: wire.ControllerStartRequest) -> wire.ControllerStartResponse:
        self._note("start")
        return wire.ControllerStartResponse(sandbox_id=message.sandbox_id, pid=7, created_at=MOMENT, labels={"a": "b"})

    async def platform(self, message: wire.ControllerPlatformRequest) -> wire.ControllerPlatformResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def wait(self, message: wire.ControllerWaitRequest) -> wire.ControllerWaitResponse:
        await asyncio.sleep(1.5)
        return wire.ControllerWaitResponse(exit_status=3, exited_at=MOMENT)

    async def stop(self, message: wire.ControllerStopRequest) -> wire.ControllerStopResponse:
        self._note("stop")
        return wire.ControllerStopResponse()

    async def shutdown(self, message: wire.ControllerShutdownRequest) -> wire.ControllerShutdownResponse:
        self._note("shutdown")
        return wire.ControllerShutdownResponse()

    async def status(self, message: wire.ControllerStatusRequest) -> wire.ControllerStatusResponse:
        return wire.ControllerStatusResponse(sandbox_id=message.sandbox_id, state=self.name)

    async def metrics(self, message: wire.ControllerMetricsRequest) -> wire.ControllerMetricsResponse:
        self._note("metrics")
        return wire.ControllerMetricsResponse()

    async def update(self, message: wire.ControllerUpdateRequest) -> wire.ControllerUpdateResponse:
        self._note("update")
        return wire.ControllerUpdateResponse()


class Told:
    """Our own controller, which knows no sandbox, and the outbox that events go to."""

    async def record(self, envelope: Envelope, subject: Subject) -> bool:
        TOLD.append((envelope.topic, envelope.namespace, envelope.event.value))
        return True

    async def status(self, id: str, *, verbose: bool = False) -> State:
        raise NotFound(f"sandbox {id}: not found")

    async def update(self, id: str, sandbox: Sandbox, fields: Sequence[str] = ()) -> None:
        raise Unimplemented(f"sandbox {id}: this controller can't follow changes of the record")


TOLD: list[tuple[str, str, bytes]] = []


@asynccontextmanager
async def passing_on(path: Path, *controllers: Controller) -> AsyncIterator[tuple[wire.ControllerStub, Listed]]:
    """A client of what taskd serves."""
    found = [Backend(type="sandbox", name=one.name, address=f"unix://{path}/{one.name}") for one in controllers]
    registry = Listed(*found, Backend(type="sandbox", name="gone", address=f"unix://{path}/gone", namespace="theirs"))
    async with AsyncExitStack() as stack:
        for one in controllers:
            await stack.enter_async_context(serve(f"unix://{path}/{one.name}", [one], name=one.name, grace=0.1))
        plugged = Plugged(registry, "sandbox")
        stack.callback(plugged.close)
        told = Told()
        every = AllControllers(told, plugged, told, call_seconds=0.5, work_seconds=30)  # type: ignore[arg-type]
        service = ControllersService(every)
        await stack.enter_async_context(serve(f"unix://{path}/t", [service], name="taskd", grace=0.1))
        channel = connect(f"unix://{path}/t")
        stack.callback(channel.close)
        with context.within(namespace="mine"):
            yield wire.ControllerStub(channel), registry


async def test_calls_go_to_the_controller_that_they_name(tmp_path: Path) -> None:
    """With their namespace, and with the answer or error of that controller; also while metadatad is away.

    What it has done is told by containerd's events.
    """
    TOLD.clear()
    one, two = Controller("one"), Controller("two")
    async with passing_on(tmp_path, one, two) as (stub, registry):
        created = await stub.create(wire.ControllerCreateRequest(sandbox_id="s", sandboxer="one"))
        assert created.sandbox_id == "s"
        with pytest.raises(AlreadyExists, match="sandbox 'taken' exists"):
            await stub.create(wire.ControllerCreateRequest(sandbox_id="taken", sandboxer="one"))
        started = await stub.start(wire.ControllerStartRequest(sandbox_id="s", sandboxer="two"))
        assert (started.pid, started.created_at, started.labels) == (7, MOMENT, {"a": "b"})
        registry.away = True
        await stub.stop(wire.ControllerStopRequest(sandbox_id="s", sandboxer="two"))
        await stub.shutdown(wire.ControllerShutdownRequest(sandbox_id="s", sandboxer="two"))
        await stub.metrics(wire.ControllerMetricsRequest(sandbox_id="s", sandboxer="two"))
        await stub.update(wire.ControllerUpdateRequest(sandbox_id="s", sandboxer="two"))
        states = [
            (await stub.status(wire.ControllerStatusRequest(sandbox_id="s", sandboxer=name))).state
            for name in ("one", "two")
        ]
        assert states == ["one", "two"]
    names = {b"\n\x01s"}
    assert [(topic, namespace) for topic, namespace, value in TOLD if value in names] == [
        ("/sandboxes/create", "mine"),
        ("/sandboxes/start", "mine"),
    ]
    assert one.asked == [("create", "mine"), ("create", "mine")]
    assert two.asked == [(method, "mine") for method in ("start", "stop", "shutdown", "metrics", "update")]


async def test_a_controller_that_is_not_there_is_named(tmp_path: Path) -> None:
    """None of that name, our own, which answers itself, and one whose process is gone."""
    async with passing_on(tmp_path) as (stub, _):
        with pytest.raises(NotFound, match="sandbox controller 'nobody' does not exist"):
            await stub.status(wire.ControllerStatusRequest(sandboxer="nobody"))
        for own in ("", "shim"):
            with pytest.raises(NotFound, match="sandbox s: not found"):
                await stub.status(wire.ControllerStatusRequest(sandbox_id="s", sandboxer=own))
            with pytest.raises(Unimplemented, match="can't follow changes"):
                await stub.update(wire.ControllerUpdateRequest(sandbox_id="s", sandboxer=own, sandbox=WireSandbox()))
        with pytest.raises(Unavailable, match=r"nothing answers at .*gone"):
            await stub.status(wire.ControllerStatusRequest(sandboxer="gone"))


async def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    """A call that is answered at once has its limit, an earlier one of the caller counts, and a wait has none."""
    async with passing_on(tmp_path, Controller("one")) as (stub, _):
        with pytest.raises(Unavailable, match=r"sandbox controller one did not answer for 0\.5 s"):
            await stub.platform(wire.ControllerPlatformRequest(sandboxer="one"))
        with context.deadline(0.1), pytest.raises(DeadlineExceeded):
            await stub.platform(wire.ControllerPlatformRequest(sandboxer="one"))
        assert (await stub.wait(wire.ControllerWaitRequest(sandboxer="one"))).exit_status == 3
