"""Long lists in one message: encoded piece by piece, so that other calls are answered meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import betterproto2

from carina.rpc.codec import Encoded, encode

T = TypeVar("T")

PIECE: Final = 200
"""Items that are encoded at once: a few milliseconds."""


async def encoded(items: Sequence[T], message: Callable[[Sequence[T]], betterproto2.Message]) -> Encoded:
    """The message of all items, where `message` makes one of some: messages put together have the fields of all."""
    pieces = []
    for start in range(0, len(items), PIECE):
        pieces.append(encode(message(items[start : start + PIECE])))
        await asyncio.sleep(0)
    return Encoded(b"".join(pieces))
