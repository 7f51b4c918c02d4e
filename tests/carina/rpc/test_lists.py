"""Long lists, encoded piece by piece."""

import asyncio

import pytest

from carina.api.containerd.services.leases.v1 import Lease, ListResponse
from carina.rpc.codec import encode
from carina.rpc.lists import PIECE, encoded


@pytest.mark.parametrize("count", [0, 1, PIECE, PIECE + 1, 3 * PIECE])
async def test_pieces_make_the_message(count: int) -> None:
    """The bytes are those of the whole message."""
    leases = [Lease(id=str(number), labels={"a": "b"}) for number in range(count)]
    answer = await encoded(leases, lambda some: ListResponse(leases=list(some)))
    assert answer.data == encode(ListResponse(leases=leases))


async def test_others_are_served_meanwhile() -> None:
    """Between two pieces everything else has its turn."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other(), name="other")
    await encoded([Lease(id="x")] * (10 * PIECE), lambda some: ListResponse(leases=list(some)))
    task.cancel()
    assert turns >= 9
