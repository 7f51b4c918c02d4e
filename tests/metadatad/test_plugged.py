"""Back ends plugged in and out, by command and by the configuration file, while everything runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from carina import config, context
from carina.api.containerd.services.sandbox.v1 import ControllerBase, ControllerStatusRequest, ControllerStatusResponse
from carina.backends import Backend
from carina.diff.server import DiffService
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unimplemented
from carina.plugin import serving
from carina.rpc.server import serve
from carina.sandboxes import Sandbox
from carina.typed import Runtime
from metadatad.backends import Registry
from metadatad.entries import PROBE_SECONDS
from metadatad.plugins import Plugins
from metadatad.records import Records
from metadatad.sandboxes import Sandboxes
from support.content import directory
from support.views import content_backend, metadata, snapshot_backend

LIMIT = 30.0
ROOT = {"containerd.io/gc.root": "x"}


@pytest.fixture
def path() -> Iterator[Path]:
    with directory() as found:
        yield found


class Controller(ControllerBase):
    async def status(self, message: ControllerStatusRequest) -> ControllerStatusResponse:
        raise NotFound(f"sandbox {message.sandbox_id!r} does not exist")


class Nothing:
    """A differ that takes no media type."""

    async def apply(self, *words: Any, **more: Any) -> Any:
        raise Unimplemented("no such media type")

    diff = apply


def plugin(path: Path, name: str = "mine", type: str = "snapshot", **more: Any) -> Backend:
    return Backend(type=type, name=name, address=f"unix://{path}/{name}.sock", **more)


@asynccontextmanager
async def registry(path: Path, text: str = "") -> AsyncIterator[tuple[Registry, Records, Callable[[str], None]]]:
    """A registry with a configuration file, and a function that writes the file."""
    file = path / "config.toml"

    def written(text: str) -> None:
        file.write_text(
            f'[services.content]\naddress = "unix://{path}/c.sock"\n'
            f'[services.snapshots.native]\naddress = "unix://{path}/native.sock"\n{text}'
        )

    written(text)
    whole = await asyncio.to_thread(config.load, file, root=path / "root", state=path)
    plugins = list(whole.proxy_plugins.values())
    async with content_backend(path), snapshot_backend(path):
        async with metadata(path, plugins=plugins) as (_, found, records, _):
            found.reread = lambda: config.load(file, root=path / "root", state=path)
            yield found, records, written


async def state(found: Registry, name: str) -> str:
    return {backend.name: backend.error for backend in await found.list()}[name]


async def until(found: Registry, name: str, *, answers: bool) -> str:
    """Wait until a back end is known to answer, or not to."""
    async with asyncio.timeout(LIMIT):
        while bool(error := await state(found, name)) is answers:
            await asyncio.sleep(0.02)
    return error


async def test_what_was_added_is_there_after_a_restart(path: Path) -> None:
    """With all that was said of it."""
    said = plugin(path, platform="linux/arm64", exports={"a": "b", "empty": ""}, capabilities=("rebase",))
    async with snapshot_backend(path, "mine"):
        async with registry(path) as (found, _, _):
            added = await found.add(said)
            assert (added.error, added.platform, added.exports) == ("", "linux/arm64", {"a": "b", "empty": ""})
        async with registry(path) as (found, _, _):
            (again,) = [backend for backend in await found.list() if backend.name == "mine"]
            assert again == added
            (shown,) = await Plugins(database=path, registry=found).plugins(["id==mine"])
            assert (str(shown.platforms[0]), shown.capabilities, shown.error) == ("linux/arm64", ("rebase",), "")
            await found.remove("", "mine")
        async with registry(path) as (found, _, _):
            assert [backend.name for backend in await found.list()] == ["content", "native"]


async def test_another_content_store_has_its_own_name(path: Path) -> None:
    """Beside the one that is called `content`, which clients look up."""
    with directory() as other:
        async with content_backend(other), registry(path) as (found, _, _):
            await found.add(Backend(type="content", name="blobs", address=f"unix://{other}/c.sock"))
            shown = await Plugins(database=path, registry=found).plugins(["type==io.containerd.content.v1"])
            assert sorted((plugin.id, plugin.error) for plugin in shown) == [("blobs", ""), ("content", "")]


async def test_what_can_not_be_plugged_in_is_refused(path: Path) -> None:
    """One sentence says why, and nothing has changed: names, addresses, sockets that are none or speak otherwise."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await reader.read()
        writer.close()

    (path / "file.sock").touch()
    talker = await asyncio.start_unix_server(babble, path / "talker.sock")
    async with talker, serving(Nothing(), path / "differ.sock"), registry(path) as (found, _, _):
        before = await found.list()
        cases = [
            (plugin(path, "absent"), Unavailable, "nothing answers at .*absent.sock"),
            (plugin(path, "file"), Unavailable, "it is no socket"),
            (plugin(path, "talker"), Unavailable, r"not usable: .*talker"),
            (plugin(path, "differ"), Unavailable, "is no snapshotter: unknown service"),
            (plugin(path, "differ", "content"), Unavailable, "is no content store"),
            (plugin(path, "differ", "sandbox"), Unavailable, "is no sandbox controller"),
            (plugin(path, "differ", "dif"), InvalidArgument, "type 'dif' is not one of"),
            (plugin(path, "native"), AlreadyExists, "'native' is there already"),
            (plugin(path, "mine", lease="l"), InvalidArgument, "lease needs namespace"),
            (Backend(type="diff", name="mine", address="tcp://x"), InvalidArgument, "expected unix:///path"),
        ]
        for backend, error, sentence in cases:
            with pytest.raises(error, match=sentence):
                await found.add(backend)
        with pytest.raises(NotFound, match="back end 'nobody' does not exist"):
            await found.remove("", "nobody")
        assert await found.list() == before


async def test_differs_and_sandbox_controllers_are_asked_too(path: Path) -> None:
    """Each type is plugged in where its service answers, whatever it answers, and reported when it is gone."""
    async with registry(path) as (found, _, _):
        async with (
            serving(Nothing(), path / "differ.sock"),
            serve(f"unix://{path}/boxes.sock", [Controller()], name="boxes"),
        ):
            assert (await found.add(plugin(path, "differ", "diff"))).error == ""
            assert (await found.add(plugin(path, "boxes", "sandbox"))).error == ""
            with pytest.raises(InvalidArgument, match=r"the same back end as proxy_plugins.differ"):
                await found.add(Backend(type="diff", name="other", address=f"unix://{path}/differ.sock"))
        await until(found, "differ", answers=False)
        assert "nothing answers" in await until(found, "boxes", answers=False)
        async with serve(f"unix://{path}/boxes.sock", [DiffService(Nothing())], name="no boxes"):
            async with asyncio.timeout(LIMIT):
                while "is no sandbox controller" not in await state(found, "boxes"):
                    await asyncio.sleep(0.02)
        async with serve(f"unix://{path}/boxes.sock", [Controller()], name="boxes"):
            await until(found, "boxes", answers=True)


async def test_what_records_need_stays(path: Path) -> None:
    """The records are named; with force those of its snapshots are forgotten, and nobody begins anything on it."""
    async with snapshot_backend(path, "mine") as trees, registry(path) as (found, records, _):
        await found.add(plugin(path))
        mine = found.snapshotter("mine")
        with context.within(namespace="one"):
            for number in range(5):
                await mine.prepare(f"key{number}", labels=ROOT)
            with pytest.raises(FailedPrecondition, match=r"snapshot 'key0' of namespace one, .* and 2 more"):
                await found.remove("snapshot", "mine")
            await mine.remove("key0")
            await found.remove("snapshot", "mine", force=True)
            with pytest.raises(InvalidArgument, match="not loaded"):
                await mine.prepare("late")
            with pytest.raises(InvalidArgument, match="not loaded"):
                found.snapshotter("mine")
        assert len([info async for info in trees.walk()]) >= 4
        for table in ("snapshots", "intents", "tombstones"):
            query = f"SELECT count(*) FROM {table}"
            assert await records.read(lambda c: c.execute(query).fetchone()[0]) == 0  # noqa: B023

        async with serve(f"unix://{path}/boxes.sock", [Controller()], name="boxes"):
            await found.add(plugin(path, "boxes", "sandbox"))
            with context.within(namespace="one"):
                sandboxes = Sandboxes(records)
                await sandboxes.create(Sandbox(id="s", sandboxer="boxes", runtime=Runtime(name="r")))
                with pytest.raises(FailedPrecondition, match="sandbox 's' of namespace one"):
                    await found.remove("", "boxes")
                await sandboxes.delete("s")
            await found.remove("", "boxes")


def section(path: Path, name: str, type: str = "snapshot", more: str = "") -> str:
    return f'[proxy_plugins.{name}]\ntype = "{type}"\naddress = "unix://{path}/{name}.sock"\n{more}'


async def test_the_configuration_is_read_again(path: Path) -> None:
    """What is new, changed and gone there is so at once; what a restart takes is said; a second time nothing is."""
    async with snapshot_backend(path, "one"), snapshot_backend(path, "two"):
        async with registry(path, section(path, "one")) as (found, _, written):
            await until(found, "one", answers=True)
            one = found.snapshotter("one")
            with context.within(namespace="n"):
                await one.prepare("key", labels=ROOT)
                written(section(path, "two") + "[images]\nattempts = 2\n")
                with pytest.raises(FailedPrecondition, match=r"proxy_plugins.one can't go.* snapshot 'key'"):
                    await found.reload()
                assert [backend.name for backend in await found.list()] == ["content", "native", "one"]
                written(section(path, "one", more='platform = "linux/arm64"\n') + section(path, "two"))
                reloaded = await found.reload()
                assert reloaded.path == str(path / "config.toml")
                assert reloaded.changes == (
                    [
                        f"proxy_plugins.two is new: snapshot at unix://{path}/two.sock",
                        "proxy_plugins.one has changed: platform is linux/arm64",
                    ]
                )
                assert (await one.stat("key")).name == "key"
                await found.snapshotter("two").prepare("key")
                await found.snapshotter("two").remove("key")
                await one.remove("key")
            written(section(path, "two") + "[images]\nattempts = 2\n")
            reloaded = await found.reload()
            assert (list(reloaded.changes), len(reloaded.later)) == (["proxy_plugins.one is gone"], 1)
            assert "[images] has changed: imaged takes it over when it is started again" in reloaded.later
            reloaded = await found.reload()
            assert (list(reloaded.changes), list(reloaded.later)) == ([], [])


async def test_an_address_changes_under_its_snapshots(path: Path) -> None:
    """A back end that has moved goes on with the snapshots that are recorded."""
    async with registry(path, section(path, "mine")) as (found, _, written):
        async with snapshot_backend(path, "mine"):
            await until(found, "mine", answers=True)
            with context.within(namespace="n"):
                await found.snapshotter("mine").prepare("key", labels=ROOT)
            (path / "mine.sock").rename(path / "moved.sock")
            written(section(path, "mine").replace("mine.sock", "moved.sock"))
            (said,) = (await found.reload()).changes
            assert said == f"proxy_plugins.mine has changed: address is unix://{path}/moved.sock"
            await until(found, "mine", answers=True)
            with context.within(namespace="n"):
                assert (await found.snapshotter("mine").stat("key")).name == "key"
            (path / "moved.sock").rename(path / "mine.sock")


async def test_a_bad_file_changes_nothing(path: Path) -> None:
    """TOML that is none, keys that are none, a plugin of a name that was added live, a file that is gone."""
    async with snapshot_backend(path, "mine"), registry(path) as (found, _, written):
        await found.add(plugin(path))
        before = await found.list()
        for text, sentence in (
            ("x = [", "is not TOML"),
            ("[proxy_plugins.y]\ntype = 1", "type must be a string"),
            (
                section(path, "mine", more='platform = "linux/arm64"\n'),
                "is the same back end as",
            ),
            (section(path, "mine", "diff"), "another plugin of this name was added live"),
        ):
            written(text)
            with pytest.raises(InvalidArgument, match=sentence):
                await found.reload()
        (path / "config.toml").unlink()
        with pytest.raises(NotFound, match="does not exist"):
            await found.reload()
        assert await found.list() == before

        written(section(path, "mine"))
        assert list((await found.reload()).changes) == [
            "proxy_plugins.mine was added live, and is in the configuration now"
        ]
        with pytest.raises(FailedPrecondition, match="in the configuration file"):
            await found.remove("", "mine")


async def test_hanging_back_ends_hold_up_no_list(path: Path) -> None:
    """However many accept connections and never answer, the list comes from what was last known."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    names = [f"silent{number}" for number in range(5)]
    servers = [await asyncio.start_unix_server(silent, path / f"{name}.sock") for name in names]
    async with registry(path, "".join(section(path, name) for name in names)) as (found, _, _):
        for name in names:
            await until(found, name, answers=False)
        assert "did not answer" in await until(found, names[0], answers=False)
        begun = asyncio.get_running_loop().time()
        for _ in range(10):
            assert len(await found.list()) == 7
        assert asyncio.get_running_loop().time() - begun < 10 * len(names) * PROBE_SECONDS
    for server in servers:
        server.close()
        await server.wait_closed()
