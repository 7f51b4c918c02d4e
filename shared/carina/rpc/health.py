"""grpc.health.v1 and containerd's Version: served by every service, asked by supervisors and gateways."""

import asyncio
from collections.abc import AsyncIterator

from carina import __version__
from carina.api.containerd.services.version.v1 import VersionBase, VersionResponse, VersionStub
from carina.api.google.protobuf import Empty
from carina.api.grpc.health.v1 import HealthBase, HealthCheckRequest, HealthCheckResponse, HealthStub
from carina.api.grpc.health.v1 import HealthCheckResponseServingStatus as ServingStatus
from carina.errors import NotFound
from carina.rpc.client import Channel

API_VERSION = "2.3.0"
"""The release of containerd whose API this is; clients parse it."""


class Health(HealthBase):
    """What a process says of itself (the empty name) and of its parts."""

    def __init__(self) -> None:
        self._serving = {"": True}
        self._changed = asyncio.Event()
        self._over = False

    def end(self) -> None:
        """Serve nothing any more, and let go of whoever watches."""
        self._over = True
        for name in self._serving:
            self._serving[name] = False
        self._changed.set()

    def set(self, name: str, serving: bool | None) -> None:
        """Say whether a part, or with the empty name the process, can do its work; None: there is no such part."""
        if serving is None:
            if self._serving.pop(name, None) is not None:
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
            return
        if self._serving.get(name) is not serving:
            self._serving[name] = serving
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def _status(self, name: str) -> ServingStatus:
        if name not in self._serving:
            return ServingStatus.SERVICE_UNKNOWN
        return ServingStatus.SERVING if self._serving[name] else ServingStatus.NOT_SERVING

    async def check(self, message: HealthCheckRequest) -> HealthCheckResponse:
        status = self._status(message.service)
        if status is ServingStatus.SERVICE_UNKNOWN:
            raise NotFound(f"service {message.service!r} is not one of this process")
        return HealthCheckResponse(status=status)

    async def watch(self, message: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        last = None
        while True:
            changed = self._changed
            status = self._status(message.service)
            if status is not last:
                yield HealthCheckResponse(status=status)
                last = status
            if self._over:
                return
            await changed.wait()


class Version(VersionBase):
    async def version(self, message: Empty) -> VersionResponse:
        return VersionResponse(version=f"{API_VERSION}+carina.{__version__}", revision="")


async def probe(channel: Channel, name: str = "") -> tuple[str, str]:
    """State (`ok` or what is wrong) and version of the service at the other end; with a name, whether it is ready."""
    state = await ready(channel, name)
    version = await VersionStub(channel).version(Empty())
    return state, version.version


async def ready(channel: Channel, name: str) -> str:
    """`ok`, or in a word what is wrong with what has this name there; one that nobody watches is as the whole is."""
    try:
        checked = await HealthStub(channel).check(HealthCheckRequest(service=name))
    except NotFound:
        checked = await HealthStub(channel).check(HealthCheckRequest())
    return "ok" if checked.status is ServingStatus.SERVING else (checked.status.name or "unknown").lower()
