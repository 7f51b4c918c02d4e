"""Any interface is served by its name, and a client reaches it as it reaches a service."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

import carina
from carina import context, plugin
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.images import Image
from carina.images.layout import LayoutImages
from carina.mount import Mount
from carina.platforms import Platform
from carina.rpc.client import connect
from carina.sandboxes import End, Instance, Reading, Sandbox, State
from carina.sandboxes.client import RemoteSandboxController
from carina.typed import TypedValue
from support.stores import MemoryContent, MemoryImages, MemoryLeases

TARGET = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(b"x"), size=1)
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
ANY = TypedValue("example.test/type", b"value")


class Controller:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def create(
        self,
        id: str,
        *,
        rootfs: Sequence[Mount] = (),
        options: TypedValue | None = None,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        if id == "taken":
            raise AlreadyExists("sandbox taken: already exists")
        self.asked.append((id, rootfs, options, netns_path, annotations, sandbox and sandbox.id))

    async def start(self, id: str) -> Instance:
        return Instance(pid=7, created_at=MOMENT, labels={"a": "b"}, address="unix:///x", version=3, spec=ANY)

    async def platform(self, id: str) -> Platform:
        return Platform(os="linux", architecture="arm64", variant="v8")

    async def stop(self, id: str, *, seconds: int = 0) -> None:
        self.asked.append((id, seconds))

    async def wait(self, id: str) -> End:
        return End(status=137, exited_at=MOMENT)

    async def status(self, id: str, *, verbose: bool = False) -> State:
        if id == "absent":
            raise NotFound("sandbox absent: not found")
        return State(state="READY", pid=7, info={"v": str(verbose)}, created_at=MOMENT, extra=ANY)

    async def shutdown(self, id: str) -> None:
        self.asked.append(id)

    async def metrics(self, id: str) -> Reading:
        return Reading(timestamp=MOMENT, data=ANY)

    async def update(self, id: str, sandbox: Sandbox, fields: Sequence[str] = ()) -> None:
        self.asked.append((id, sandbox.labels, list(fields)))


async def test_a_sandbox_controller_is_the_same_over_a_socket(tmp_path: Path) -> None:
    """Every method passes what it is given and answers what the controller does, errors included."""
    controller = Controller()
    async with plugin.serving(controller, tmp_path / "c.sock"):
        channel = connect(f"unix://{tmp_path}/c.sock")
        far = RemoteSandboxController(channel, "mine")
        mount = Mount(type="bind", source="/a", options=("ro",))
        await far.create(
            "s", rootfs=[mount], options=ANY, netns_path="/n", annotations={"k": "v"}, sandbox=Sandbox(id="s")
        )
        with pytest.raises(AlreadyExists):
            await far.create("taken")
        assert await far.start("s") == await controller.start("s")
        assert await far.platform("s") == await controller.platform("s")
        await far.stop("s", seconds=5)
        assert await far.wait("s") == await controller.wait("s")
        assert await far.status("s", verbose=True) == await controller.status("s", verbose=True)
        with pytest.raises(NotFound):
            await far.status("absent")
        assert await far.metrics("s") == await controller.metrics("s")
        await far.update("s", Sandbox(id="s", labels={"l": "1"}), ["labels"])
        await far.shutdown("s")
        channel.close()
    assert controller.asked == [
        ("s", [mount], ANY, "/n", {"k": "v"}, "s"),
        ("s", 5),
        ("s", {"l": "1"}, ["labels"]),
        "s",
    ]


async def test_stores_are_served_by_name(tmp_path: Path) -> None:
    """Interfaces with the same methods are told apart by the names that they are given."""
    images = LayoutImages(tmp_path / "images")
    served = {"images": images, "content": MemoryContent(), "leases": MemoryLeases()}
    async with plugin.serving(served, tmp_path / "p.sock"):
        async with carina.Client(f"unix://{tmp_path}/p.sock", namespace="test") as client:
            await client.images.create(Image(name="example.test/a:1", target=TARGET))
            with pytest.raises(AlreadyExists):
                await client.images.create(Image(name="example.test/a:1", target=TARGET))
            async with await client.content.writer("ref") as writer:
                await writer.write(b"hello")
                digest = await writer.commit()
            async with client.lease() as lease:
                assert [one.id for one in await client.leases.list()] == [lease]
    assert [one.name for one in await images.list()] == ["example.test/a:1"]
    assert digest == Digest.of(b"hello")


async def test_a_namespace_travels_with_the_calls_of_a_client(tmp_path: Path) -> None:
    """The client's own where a call is made in none, the call's where there is one."""
    seen: list[str | None] = []

    class Images(MemoryImages):
        async def list(self, filters: Sequence[str] = ()) -> list[Image]:
            seen.append(context.current().namespace)
            return []

    async with plugin.serving({"images": Images()}, tmp_path / "p.sock"):
        async with carina.Client(f"unix://{tmp_path}/p.sock", namespace="mine") as client:
            await client.images.list()
            with client.within("other"):
                await client.images.list()
            await asyncio.gather(client.images.list(), client.images.list())
    assert seen == ["mine", "other", "mine", "mine"]


def test_what_does_not_fit_is_refused() -> None:
    """By what it lacks, or by the names that there are."""
    with pytest.raises(
        InvalidArgument, match="MemoryContent does not implement images: it has no method create, get, list"
    ):
        plugin.adapters({"images": MemoryContent()})
    with pytest.raises(InvalidArgument, match="'pictures' is no interface: expected one of snapshots, content"):
        plugin.adapters({"pictures": MemoryContent()})
