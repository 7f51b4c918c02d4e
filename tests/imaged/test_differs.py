"""Differs that are plugged in: which is asked for what, and what happens to one that hangs."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carina import context
from carina.backends import Backend
from carina.backends.plugged import Plugged
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import FailedPrecondition, InvalidArgument, Unavailable, Unimplemented
from carina.mount import Mount
from carina.plugin import serving
from imaged.differs import Differs
from support.content import directory
from support.listed import Listed
from support.snapshots import serving as process

LAYER = Descriptor(media_type="own", digest=Digest.of(b"x"), size=1)
BIND = [Mount(type="bind", source="/x", options=("rw",))]

HANGING = """
import asyncio, sys
from carina.plugin import serve

class Slow:
    async def apply(self, layer, mounts, *, sync_fs=True):
        if layer.media_type == "slow":
            await asyncio.sleep(1.0)
        elif layer.media_type != "quick":
            await asyncio.Event().wait()
        return layer
    async def diff(self, *words, **more): ...

serve(Slow(), sys.argv[1])
"""


class Takes:
    """A differ that takes some media types and answers its own name."""

    def __init__(self, name: str, *media_types: str) -> None:
        self.name = name
        self.media_types = media_types
        self.called: list[tuple[str, context.Call]] = []

    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync_fs: bool = True,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Descriptor:
        return self._answer(layer.media_type)

    async def diff(self, *trees: Any, media_type: str = "", labels: Mapping[str, str] | None = None, **_: Any) -> Any:
        return self._answer(media_type)

    def _answer(self, media_type: str) -> Descriptor:
        self.called.append((media_type, context.current()))
        if media_type == "broken":
            raise InvalidArgument("broken")
        if media_type not in self.media_types:
            raise Unimplemented(f"{self.name} does not take {media_type}")
        return Descriptor(media_type=self.name, digest=LAYER.digest, size=1)


@asynccontextmanager
async def differs(path: Path, *external: Takes, own: Takes, order: Sequence[str] = ()) -> AsyncIterator[Any]:
    """Differs over real sockets, by a function that says who applied, and who made, a layer of a media type."""
    registry = Listed(
        *(Backend(type="diff", name=one.name, address=f"unix://{path}/{one.name}", namespace="n") for one in external),
        Backend(type="snapshot", name="other", address=f"unix://{path}/other"),
    )
    async with AsyncExitStack() as stack:
        for one in external:
            await stack.enter_async_context(serving(one, path / one.name))
        plugged = Plugged(registry, "diff")
        stack.callback(plugged.close)
        asked = Differs(own, plugged, order=order)

        async def who(media_type: str, mounts: Sequence[Mount] = BIND) -> str:
            applied = await asked.apply(replace(LAYER, media_type=media_type), mounts)
            made = await asked.diff([], [], media_type=media_type)
            assert applied == made
            return applied.media_type

        yield who, registry


async def test_ours_is_first_and_the_plugged_ones_follow(tmp_path: Path) -> None:
    """By the media type; another error than that ends it."""
    own, first, second = Takes("walking", "a"), Takes("first", "b"), Takes("second", "b", "c")
    async with differs(tmp_path, first, second, own=own) as (who, registry):
        assert await who("a") == "walking"
        assert [await who("b"), await who("c")] == ["first", "second"]
        assert {call.namespace for _, call in first.called} == {"n"}
        with pytest.raises(Unimplemented, match=r"no differ takes .*'d' \(asked: walking, first, second\)"):
            await who("d")
        registry.backends = []
        with pytest.raises(Unimplemented, match="walking does not take d"):
            await who("d")
        with pytest.raises(InvalidArgument, match="broken"):
            await who("broken")


async def test_another_differ_takes_the_place_of_ours(tmp_path: Path) -> None:
    """After a swap, the one that has our name is asked where ours would be, but for halves of overlays."""
    own, swapped, first = Takes("own", "a", "h"), Takes("walking", "a"), Takes("first", "b")
    async with differs(tmp_path, swapped, first, own=own) as (who, registry):
        assert [await who("a"), await who("b")] == ["walking", "first"]
        assert not own.called
        with pytest.raises(Unimplemented, match=r"asked: walking, first\)"):
            await who("h")
        registry.backends = registry.backends[1:]
        assert await who("a") == "own"


async def test_the_order_is_as_configured(tmp_path: Path) -> None:
    """Only differs that it names are asked; one that is not plugged in yet is passed over."""
    own, first, second = Takes("walking", "a", "b"), Takes("first", "a"), Takes("second", "a", "c")
    async with differs(tmp_path, first, second, own=own, order=("later", "first", "walking")) as (who, _):
        assert [await who("a"), await who("b")] == ["first", "walking"]
        with pytest.raises(Unimplemented, match="asked: first, walking"):
            await who("c")
    async with differs(tmp_path, own=own, order=("later",)) as (who, _):
        with pytest.raises(Unimplemented, match="none of later is plugged in"):
            await who("a")


async def test_what_was_last_known_counts(tmp_path: Path) -> None:
    """While metadatad does not answer, plugins are called where they were."""
    async with differs(tmp_path, Takes("first", "b"), own=Takes("walking")) as (who, registry):
        assert await who("b") == "first"
        registry.away = True
        assert await who("b") == "first"


async def test_a_plugged_differ_gets_no_half_of_an_overlay(tmp_path: Path) -> None:
    """A layer that is applied before its parent is there has mounts that only ours understands."""
    half = [Mount(type="overlay", source="overlay", options=("upperdir=/x",))]
    async with differs(tmp_path, Takes("first", "b"), own=Takes("walking", "a")) as (who, _):
        assert await who("a", half) == "walking"
        with pytest.raises(FailedPrecondition, match="needs the layers below"):
            await who("b", half)


async def test_one_that_is_stopped_is_given_up(tmp_path: Path) -> None:
    """A differ may take as long as it likes while its process lives; when that is stopped, its calls end."""
    with directory() as path, process(path / "d.sock", "-c", HANGING, str(path / "d.sock")) as hanging:
        plugged = Plugged(Listed(Backend(type="diff", name="d", address=f"unix://{path}/d.sock")), "diff")
        asked = Differs(Takes("walking"), plugged, stall=0.4)
        try:
            async with asyncio.timeout(30):
                patient = Differs(Takes("walking"), plugged, stall=20)
                assert (await patient.apply(replace(LAYER, media_type="slow"), BIND)).media_type == "slow"
                working = asyncio.create_task(asked.apply(LAYER, BIND))
                await asyncio.sleep(0.1)
                os.kill(hanging.pid, signal.SIGSTOP)
                with pytest.raises(Unavailable, match="differ d does not answer since"):
                    await working
                os.kill(hanging.pid, signal.SIGCONT)
                assert (await patient.apply(replace(LAYER, media_type="quick"), BIND)).media_type == "quick"
        finally:
            os.kill(hanging.pid, signal.SIGCONT)
            plugged.close()
