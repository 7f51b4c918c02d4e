"""Where the task of a container that is in a sandbox is created: at the Task API that the sandbox has."""

from typing import Final

from carina import context
from carina.api.containerd.runc.v1 import Options
from carina.api.containerd.services.sandbox.v1 import ControllerStatusRequest
from carina.containers import Container
from carina.errors import InvalidArgument, NotFound, Unavailable
from carina.rpc.codec import decode
from carina.sandboxes import SandboxStore
from carina.sandboxes.server import Controllers
from carina.typed import TypedValue
from taskd.bootstrap import GRPC, TTRPC, VERSIONS
from taskd.bundle import Bootstrap
from taskd.endpoint import Endpoint
from taskd.registry import Registry
from taskd.runtime import RUNC_OPTIONS
from taskd.sandboxes import Sandboxes

_METADATA_SECONDS: Final = 20.0


class Endpoints:
    def __init__(
        self,
        registry: Registry,
        sandboxes: Sandboxes,
        store: SandboxStore | None = None,
        controllers: Controllers | None = None,
    ) -> None:
        self._registry, self._sandboxes = registry, sandboxes
        self._store, self._controllers = store, controllers

    async def find(self, container: Container, options: TypedValue | None) -> Endpoint | None:
        """None for a container that is in no sandbox.

        Raises:
            NotFound: its sandbox, or that sandbox's controller, is not there.
            Unavailable: the sandbox does not tell where its tasks go, or is not ready.
        """
        address, version = _stated(options)
        if address:
            return Endpoint(bootstrap=parse(address, version, container.id))
        id = container.sandbox
        if not id:
            return None
        own = self._sandboxes.find(id)
        if own is not None:
            shim = own.live().shim
            if shim is None or own.last is not None:
                raise Unavailable(f"container {container.id}: its sandbox {id} has ended")
            return Endpoint(bootstrap=shim.bootstrap, binary=own.binary)
        return await self._foreign(container.id, id) or await self._task(container.id, id)

    async def _foreign(self, container_id: str, id: str) -> Endpoint | None:
        """The address that the controller of the sandbox's record tells."""
        if self._store is None or self._controllers is None:
            return None
        try:
            with context.deadline(_METADATA_SECONDS):
                sandboxer = (await self._store.get(id)).sandboxer
        except NotFound:
            return None
        async with self._controllers.reach(sandboxer) as controller:
            try:
                request = ControllerStatusRequest(sandbox_id=id, sandboxer=sandboxer)
                found = await controller.status(request)
            except NotFound:
                return None
        if not found.address:
            return None
        return Endpoint(bootstrap=parse(found.address, found.version, container_id))

    async def _task(self, container_id: str, id: str) -> Endpoint:
        """The shim of the task of that name: a pod's first container can be its sandbox."""
        try:
            task = await self._registry.live(id)
        except NotFound:
            raise NotFound(f"container {container_id}: its sandbox {id} is not running") from None
        assert task.shim is not None
        return Endpoint(bootstrap=task.shim.bootstrap, binary=task.binary)


def _stated(options: TypedValue | None) -> tuple[str, int]:
    """What the client says itself of where the task goes."""
    if options is None or options.type_url.rpartition("/")[2] != RUNC_OPTIONS:
        return "", 0
    found = decode(Options, options.value)
    return found.task_api_address, found.task_api_version


def parse(address: str, version: int, id: str) -> Bootstrap:
    """Read `ttrpc+unix:///path`, as sandboxes tell it; without a protocol it is ttrpc, without a version 3.

    Raises:
        InvalidArgument: it is none.
    """
    protocol, plus, rest = address.partition("+")
    if not plus:
        protocol, rest = TTRPC, address
    version = version or max(VERSIONS)
    if protocol not in (TTRPC, GRPC) or version not in VERSIONS or not rest.startswith(("unix://", "/")):
        raise InvalidArgument(
            f"container {id}: the task address {address!r} of version {version} is not one that is spoken here"
        )
    return Bootstrap(version=version, address=rest, protocol=protocol)
