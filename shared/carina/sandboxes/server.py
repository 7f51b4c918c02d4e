"""Serves any sandbox store over gRPC."""

from carina.api.containerd.services.sandbox.v1 import (
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
from carina.rpc.codec import Encoded
from carina.rpc.lists import encoded
from carina.sandboxes import SandboxStore
from carina.sandboxes.client import from_wire, to_wire


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
