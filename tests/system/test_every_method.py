"""What answers each method of containerd's API: the compatibility table of the documentation is held to it."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from grpclib.const import Cardinality

import carina
from carina import context
from carina.api.containerd.services.transfer.v1 import TransferRequest
from carina.api.google.protobuf import Any as WireAny
from carina.errors import CarinaError, DeadlineExceeded, Unimplemented
from carina.rpc.client import connect
from carina.rpc.codec import Encoded, encode
from support.constellation import Constellation
from support.documents import REPOSITORY
from support.methods import Method, methods

TABLE = REPOSITORY / "tests" / "compatibility.json"

REQUESTS = {
    # Of kinds that are no pair it answers UNIMPLEMENTED; this is one, of a reference that is none.
    "/containerd.services.transfer.v1.Transfer/Transfer": encode(
        TransferRequest(
            source=WireAny(type_url="containerd.types.transfer.OCIRegistry"),
            destination=WireAny(type_url="containerd.types.transfer.ImageStore"),
        )
    )
}
"""What is asked where nothing at all would not do."""


class Ignored:
    """A message of whatever type: what is asked is only whether there is an answer."""


async def answer(address: str, method: Method) -> str:
    """`UNIMPLEMENTED`, or `built`: an answer, an error that says more, or waiting for more."""
    channel = connect(address)
    asks, answers = ("STREAM" if streams else "UNARY" for streams in (method.client_streams, method.server_streams))
    kind = Cardinality[f"{asks}_{answers}"]
    try:
        with context.deadline(2.0):
            async with asyncio.timeout(10):
                async with channel.request(method.path, kind, Ignored, Ignored) as stream:
                    await stream.send_message(Encoded(REQUESTS.get(method.path, b"")), end=True)
                    await stream.recv_initial_metadata()
                    await stream.cancel()
    except Unimplemented:
        return "UNIMPLEMENTED"
    except (DeadlineExceeded, CarinaError):
        return "built"
    finally:
        channel.close()
    return "built"


def test_the_definitions_are_read() -> None:
    """More than eighty methods, of all services."""
    found = [method.path for method in methods()]
    assert "/containerd.services.content.v1.Content/Write" in found
    assert len({path.rpartition("/")[0] for path in found}) == 16
    assert len(found) == len(set(found)) > 80


@pytest.mark.timeout(240)
async def test_the_table_says_what_is_built(constellation: Constellation) -> None:
    """Each method of the table is answered as the table says, and each method is in the table."""
    said = {path: entry["answer"] for path, entry in json.loads(TABLE.read_text()).items()}
    found = {}
    namespace = f"{constellation.namespace}-methods"
    with context.within(namespace=namespace):
        for method in methods():
            found[method.path] = await answer(constellation.address, method)
    async with carina.Client(constellation.address, namespace=namespace) as client:
        for lease in await client.leases.list():  # one needs nothing but the wish for it
            await client.leases.delete(lease.id)
        await client.namespaces.delete(namespace)
    if directory := os.environ.get("CARINA_RECORD"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "answers.json").write_text(json.dumps(found))
    else:
        assert found == said
