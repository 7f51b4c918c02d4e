"""Who moves images: the Transfer service where there is one, else this process, from the interfaces that it has.

A containerd before 1.7 has no such service, and no service reaches an object in our process.
What is composed is the code of imaged, loaded by name (see `carina.client.embedded`).
"""

from collections.abc import Callable

from carina.errors import Unimplemented
from carina.introspection import Introspection
from carina.transfer import Transfer
from carina.transfer.deferred import DeferredTransfer

SERVICE = "type==io.containerd.grpc.v1,id==transfer"


def available(introspection: Introspection, remote: Transfer, compose: Callable[[], Transfer]) -> Transfer:
    """The service's where it has one, which is asked once; else what `compose` makes."""

    async def choose() -> Transfer:
        try:
            there = bool(await introspection.plugins([SERVICE]))
        except Unimplemented:
            there = True  # a service by itself, which says what it serves when it is called
        return remote if there else compose()

    return DeferredTransfer(choose)
