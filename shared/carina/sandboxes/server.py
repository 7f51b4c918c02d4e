"""Serves any sandbox store and controller over gRPC, and passes calls on to the controller that they name."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from carina.api.containerd.services.sandbox.v1 import (
    ControllerBase,
    ControllerCreateRequest,
    ControllerCreateResponse,
    ControllerMetricsRequest,
    ControllerMetricsResponse,
    ControllerPlatformRequest,
    ControllerPlatformResponse,
    ControllerShutdownRequest,
    ControllerShutdownResponse,
    ControllerStartRequest,
    ControllerStartResponse,
    ControllerStatusRequest,
    ControllerStatusResponse,
    ControllerStopRequest,
    ControllerStopResponse,
    ControllerStub,
    ControllerUpdateRequest,
    ControllerUpdateResponse,
    ControllerWaitRequest,
    ControllerWaitResponse,
    StoreBase,
    StoreCreateRequest,
    StoreCreateResponse,
    StoreDeleteRequest,
    StoreDeleteResponse,
    StoreGetRequest,
    StoreGetResponse,
    StoreListRequest,
    StoreListResponse,
    StoreUpdateRequest,
    StoreUpdateResponse,
)
from carina.api.containerd.types import Metric as WireMetric
from carina.api.containerd.types import Platform as WirePlatform
from carina.mount import Mount
from carina.rpc.any import value_from_wire, value_to_wire
from carina.rpc.codec import Encoded
from carina.rpc.lists import encoded
from carina.sandboxes import End, SandboxController, SandboxStore
from carina.sandboxes.client import from_wire, to_wire


class Controllers(Protocol):
    """The sandbox controllers that there are: our own, and those of other processes."""

    def reach(
        self, sandboxer: str, *, work: bool = False, endless: bool = False
    ) -> AbstractAsyncContextManager["ControllerBase | ControllerStub"]:
        """The controller of that name, for one call that is answered at once, works, or waits.

        Raises:
            NotFound: there is none.
            Unavailable: it does not answer.
        """

    async def created(self, sandboxer: str, id: str) -> None:
        """A controller has created a sandbox."""

    async def started(self, sandboxer: str, id: str) -> None: ...

    async def exited(self, sandboxer: str, id: str, end: End) -> None: ...


class ControllersService(ControllerBase):
    """Passes each call on to the controller that it names."""

    def __init__(self, controllers: Controllers) -> None:
        self._controllers = controllers
        self._reach = controllers.reach

    async def create(self, message: ControllerCreateRequest) -> ControllerCreateResponse:
        async with self._reach(message.sandboxer, work=True) as controller:
            answer = await controller.create(message)
        await self._controllers.created(message.sandboxer, message.sandbox_id)
        return answer

    async def start(self, message: ControllerStartRequest) -> ControllerStartResponse:
        async with self._reach(message.sandboxer, work=True) as controller:
            answer = await controller.start(message)
        await self._controllers.started(message.sandboxer, message.sandbox_id)
        return answer

    async def platform(self, message: ControllerPlatformRequest) -> ControllerPlatformResponse:
        async with self._reach(message.sandboxer) as controller:
            return await controller.platform(message)

    async def stop(self, message: ControllerStopRequest) -> ControllerStopResponse:
        async with self._reach(message.sandboxer, work=True) as controller:
            return await controller.stop(message)

    async def wait(self, message: ControllerWaitRequest) -> ControllerWaitResponse:
        async with self._reach(message.sandboxer, endless=True) as controller:
            answer = await controller.wait(message)
        end = End(status=answer.exit_status, exited_at=answer.exited_at)
        await self._controllers.exited(message.sandboxer, message.sandbox_id, end)
        return answer

    async def status(self, message: ControllerStatusRequest) -> ControllerStatusResponse:
        async with self._reach(message.sandboxer) as controller:
            return await controller.status(message)

    async def shutdown(self, message: ControllerShutdownRequest) -> ControllerShutdownResponse:
        async with self._reach(message.sandboxer, work=True) as controller:
            return await controller.shutdown(message)

    async def metrics(self, message: ControllerMetricsRequest) -> ControllerMetricsResponse:
        async with self._reach(message.sandboxer) as controller:
            return await controller.metrics(message)

    async def update(self, message: ControllerUpdateRequest) -> ControllerUpdateResponse:
        async with self._reach(message.sandboxer) as controller:
            return await controller.update(message)


class ControllerService(ControllerBase):
    """Serves one sandbox controller."""

    def __init__(self, controller: SandboxController) -> None:
        self._controller = controller

    async def create(self, message: ControllerCreateRequest) -> ControllerCreateResponse:
        await self._controller.create(
            message.sandbox_id,
            sandbox=None if message.sandbox is None else from_wire(message.sandbox),
            rootfs=[
                Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in message.rootfs
            ],
            options=value_from_wire(message.options),
            netns_path=message.netns_path,
            annotations=dict(message.annotations),
        )
        return ControllerCreateResponse(sandbox_id=message.sandbox_id)

    async def start(self, message: ControllerStartRequest) -> ControllerStartResponse:
        found = await self._controller.start(message.sandbox_id)
        return ControllerStartResponse(
            sandbox_id=message.sandbox_id,
            pid=found.pid,
            created_at=found.created_at,
            labels=dict(found.labels),
            address=found.address,
            version=found.version,
            spec=value_to_wire(found.spec),
        )

    async def platform(self, message: ControllerPlatformRequest) -> ControllerPlatformResponse:
        found = await self._controller.platform(message.sandbox_id)
        platform = WirePlatform(os=found.os, architecture=found.architecture, variant=found.variant)
        return ControllerPlatformResponse(platform=platform)

    async def stop(self, message: ControllerStopRequest) -> ControllerStopResponse:
        await self._controller.stop(message.sandbox_id, seconds=message.timeout_secs)
        return ControllerStopResponse()

    async def wait(self, message: ControllerWaitRequest) -> ControllerWaitResponse:
        end = await self._controller.wait(message.sandbox_id)
        return ControllerWaitResponse(exit_status=end.status, exited_at=end.exited_at)

    async def status(self, message: ControllerStatusRequest) -> ControllerStatusResponse:
        found = await self._controller.status(message.sandbox_id, verbose=message.verbose)
        return ControllerStatusResponse(
            sandbox_id=message.sandbox_id,
            pid=found.pid,
            state=found.state,
            info=dict(found.info),
            created_at=found.created_at,
            exited_at=found.exited_at,
            extra=value_to_wire(found.extra),
            address=found.address,
            version=found.version,
        )

    async def shutdown(self, message: ControllerShutdownRequest) -> ControllerShutdownResponse:
        await self._controller.shutdown(message.sandbox_id)
        return ControllerShutdownResponse()

    async def metrics(self, message: ControllerMetricsRequest) -> ControllerMetricsResponse:
        found = await self._controller.metrics(message.sandbox_id)
        metrics = WireMetric(id=message.sandbox_id, timestamp=found.timestamp, data=value_to_wire(found.data))
        return ControllerMetricsResponse(metrics=metrics)

    async def update(self, message: ControllerUpdateRequest) -> ControllerUpdateResponse:
        await self._controller.update(message.sandbox_id, from_wire(message.sandbox), message.fields)
        return ControllerUpdateResponse()


class SandboxesService(StoreBase):
    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    async def create(self, message: StoreCreateRequest) -> StoreCreateResponse:
        return StoreCreateResponse(sandbox=to_wire(await self._store.create(from_wire(message.sandbox))))

    async def update(self, message: StoreUpdateRequest) -> StoreUpdateResponse:
        return StoreUpdateResponse(
            sandbox=to_wire(await self._store.update(from_wire(message.sandbox), message.fields))
        )

    async def delete(self, message: StoreDeleteRequest) -> StoreDeleteResponse:
        await self._store.delete(message.sandbox_id)
        return StoreDeleteResponse()

    async def list(self, message: StoreListRequest) -> Encoded:  # type: ignore[override]  # what is sent
        found = await self._store.list(message.filters)
        return await encoded(found, lambda some: StoreListResponse(list=[to_wire(sandbox) for sandbox in some]))

    async def get(self, message: StoreGetRequest) -> StoreGetResponse:
        return StoreGetResponse(sandbox=to_wire(await self._store.get(message.sandbox_id)))
