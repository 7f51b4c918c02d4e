"""The smart client: one program on every kind of server, its streams, and what a cancellation leaves."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import carina
from carina.errors import NotFound, ResourceExhausted
from carina.events import Edge
from carina.images import Image
from carina.oci.options import Options
from support.constellation import Constellation
from support.content import containerd, directory
from support.cut import Cut
from support.registry import Registry

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SAID = [
    "said HELLO and ended with 0",
    "streamed line 0",
    "streamed line 1",
    "streamed line 2",
    "executed, with status 0",
    "happened /images/create",
    *["happened /tasks/exit"] * 3,
    "happened /images/delete",
]


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    """A containerd of its own, as Debian has it; its address."""
    with directory() as path, containerd(path) as address:
        yield address
        fifos = path / "fifo"
        assert not fifos.exists() or not list(fifos.iterdir())


@contextlib.contextmanager
def cgroup(namespace: str) -> Iterator[None]:
    """runc removes a container's control group, not the namespace's above it."""
    try:
        yield
    finally:
        for path in Path("/sys/fs/cgroup").glob(f"*/{namespace}"):
            with contextlib.suppress(OSError):
                path.rmdir()


def example(name: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def left(client: carina.Client) -> list[str]:
    """What is there of containers: records, tasks, snapshots that nobody committed, leases, FIFOs."""
    found = [f"container {one.id}" for one in await client.containers.list()]
    found += [f"task {one.container_id}" for one in await client.tasks.list()]
    snapshotter = client.snapshotter("overlayfs")
    found += [f"snapshot {one.name}" async for one in snapshotter.walk(["kind==active", "kind==view"])]
    found += [f"lease {one.id}" for one in await client.leases.list()]
    if client.fifo_directory.exists():
        found += [f"fifos {one}" for one in os.listdir(client.fifo_directory)]
    return found


def test_the_program_runs_on_carina(constellation: Constellation, reference: str) -> None:
    """Through the gateway."""
    assert example("program.py", constellation.address, reference, constellation.namespace) == [
        f"pulled {reference}",
        *SAID,
    ]


def test_the_program_runs_on_containerd(foreign: str, reference: str) -> None:
    """The same program, unchanged; containerd 1.6 has no Transfer service, so the client pulls by itself."""
    namespace = f"client-test-{os.getpid()}"
    with cgroup(namespace):
        assert example("program.py", foreign, reference, namespace) == [f"pulled {reference}", *SAID]


@pytest.mark.parametrize("server", ["carina", "containerd"])
def test_the_program_runs_on_services_of_its_own(
    constellation: Constellation, foreign: str, reference: str, server: str, tmp_path: Path
) -> None:
    """Content and snapshots are in objects of the program's process, and nothing of the image is the server's."""
    address = constellation.address if server == "carina" else foreign
    namespace = constellation.namespace if server == "carina" else f"client-test-{os.getpid()}-own"
    with cgroup(namespace):
        said = example("swapped.py", address, reference, namespace, str(tmp_path))
    assert said == [f"pulled {reference}", *SAID]
    assert len(list((tmp_path / "content" / "blobs" / "sha256").iterdir())) == 5
    trees = tmp_path / "snapshots" / "trees"
    assert sorted(len(list(tree.glob("bin/busybox"))) for tree in trees.iterdir()) == [1, 1]
    listed = subprocess.run(
        ["ctr", "--address", address.removeprefix("unix://"), "--namespace", namespace, "content", "ls", "-q"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout == ""


def test_an_image_is_fetched_in_ten_lines(reference: str, tmp_path: Path) -> None:
    """With no daemon; the directory is an OCI image layout that other tools read."""
    (said,) = example("embedded.py", reference, str(tmp_path / "images"))
    read = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{tmp_path / 'images'}:1.0"], capture_output=True, check=True
    )
    assert said.startswith(f"{reference} sha256:")
    assert b'"manifests"' in read.stdout


async def ran(client: carina.Client, image: Image) -> bytes:
    """A container with input and output."""
    return (await client.run(image, ["cat"], stdin=b"x" * 100_000)).stdout


async def executed(client: carina.Client, image: Image) -> bytes:
    """A further process in a container that goes on, and is found again."""
    container = await client.create_container("cut", image, ["sleep", "1000"])
    async with container:
        await container.start()
        task = await container.running()
        async with task.exec(["cat"], stdin=True) as process:
            out, _ = await process.communicate(b"x" * 100_000)
    return out


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("work", [ran, executed])
@pytest.mark.timeout(300)
async def test_what_is_cancelled_leaves_nothing(
    constellation: Constellation,
    reference: str,
    work: Callable[[carina.Client, Image], Coroutine[Any, Any, bytes]],
    *,
    after: bool,
) -> None:
    """Whichever call it is cut off at, before or after that has been done, nothing that it made is left."""
    async with carina.Client(constellation.address, namespace=constellation.namespace) as plain:
        image = await plain.pull(reference)
        at = 0
        while True:
            cut = Cut(at, after=after)
            async with carina.Client(
                constellation.address,
                namespace=constellation.namespace,
                tasks=cut.before(plain.tasks),
                containers=cut.before(plain.containers),
                leases=cut.before(plain.leases),
                snapshotters={"overlayfs": cut.before(plain.snapshotter("overlayfs"))},
            ) as client:
                cut.victim = asyncio.create_task(work(client, image), name="victim")
                await asyncio.wait([cut.victim])
            assert await left(plain) == [], f"cut off at call {at}, {cut.fired}"
            if not cut.fired:
                assert cut.victim.result() == b"x" * 100_000
                break
            assert cut.victim.cancelled(), f"cut off at call {at}, {cut.fired}"
            at += 1
        assert at > 5


async def test_a_cancelled_unpacking_leaves_no_half_layer(
    constellation: Constellation, reference: str, tmp_path: Path
) -> None:
    """Cut off at each call to the snapshotter, an unpacking by the client leaves committed snapshots only."""
    async with carina.Client(constellation.address, namespace=constellation.namespace) as plain:
        await plain.fetch(reference)
        for at in range(20):
            for after in (False, True):
                cut = Cut(at, after=after)
                own = plain.snapshotter("native")
                async with carina.Client(
                    constellation.address,
                    namespace=constellation.namespace,
                    snapshotter="native",
                    snapshotters={"native": cut.before(own)},
                ) as client:
                    cut.victim = asyncio.create_task(client.pull(reference), name="victim")
                    await asyncio.wait([cut.victim])
                kinds = {info.kind.name async for info in own.walk()}
                assert kinds <= {"COMMITTED"}, f"cut off at call {at}, {cut.fired}"
                if not cut.fired:
                    return
                assert cut.victim.cancelled()
        raise AssertionError("more calls than layers need")


async def test_streams(constellation: Constellation, reference: str) -> None:
    """What is written arrives, what is printed comes back whole, and a closed input ends a process."""
    data = os.urandom(3_000_000)
    async with carina.Client(constellation.address, namespace=constellation.namespace) as client:
        image = await client.pull(reference)
        done = await client.run(image, ["sh", "-c", "cat; echo done >&2; exit 7"], stdin=data)
        assert (done.exit_status, done.stdout == data, done.stderr) == (7, True, b"done\n")
        with pytest.raises(ResourceExhausted, match="more than 1000 bytes"):
            async with await client.create_container("loud", image, ["yes"]) as loud, loud.task() as task:
                await task.communicate(limit=1000)
        with pytest.raises(NotFound):
            await client.container("loud")


async def test_execs(constellation: Constellation, reference: str) -> None:
    """A further process has streams of its own, an environment, a terminal, and is killed with its block."""
    async with carina.Client(constellation.address, namespace=constellation.namespace) as client:
        image = await client.pull(reference)
        async with (
            await client.create_container("execs", image, ["sleep", "1000"]) as container,
            container.task() as task,
        ):
            async with task.exec(
                ["sh", "-c", "echo $A; pwd; cat"], Options(env=["A=b"], cwd="/tmp"), stdin=True
            ) as one:
                assert await one.communicate(b"in") == (b"b\n/tmp\nin", b"")
            async with task.exec(["sh", "-c", "tty; read go; stty size"], stdin=True, terminal=True) as two:
                await two.resize(99, 33)
                assert two.stdin is not None
                assert two.stdout is not None
                assert two.stderr is None
                assert (await two.stdout.readline()).startswith(b"/dev/pts/")
                two.stdin.write(b"go\n")
                assert b"33 99" in await two.stdout.readuntil(b"99")
            async with task.exec(["sleep", "1000"], exec_id="three") as three:
                assert three.pid in await task.pids()
            with pytest.raises(NotFound):
                await three.state()
            await task.kill(9)
            assert (await task.wait()).status == 137


async def test_a_started_container_goes_on(constellation: Constellation, reference: str) -> None:
    """It outlives the client that started it, and the next one finds it."""
    async with carina.Client(constellation.address, namespace=constellation.namespace) as client:
        image = await client.pull(reference)
        container = await client.create_container("lasting", image, ["sleep", "1000"], labels={"a": "b"})
        started = await container.start()
    async with carina.Client(constellation.address, namespace=constellation.namespace) as client:
        container = await client.container("lasting")
        task = await container.running()
        assert (task.pid, container.record.labels["a"]) == (started.pid, "b")
        await container.remove(force=True)
        with client.bound():
            assert await left(client) == []


async def test_events_have_a_cursor(constellation: Constellation, reference: str) -> None:
    """Where one subscription ends, another goes on, and nothing between them is missed."""
    async with carina.Client(constellation.address, namespace=constellation.namespace) as client:
        image = await client.pull(reference)
        mine = f"namespace=={constellation.namespace}"
        async with client.subscribe(f'topic~="^/images/",{mine}') as events:
            await client.tag(image.name, "example.test/one:1")
            first = await anext(events)
        await client.images.delete("example.test/one:1")
        async with client.subscribe(f'topic~="^/images/",{mine}', after=events.cursor or Edge.NOW) as more:
            second = await anext(more)
    assert [(one.topic, one.fields["name"]) for one in (first, second)] == [
        ("/images/create", "example.test/one:1"),
        ("/images/delete", "example.test/one:1"),
    ]


async def test_events_of_a_containerd_begin_with_the_block(foreign: str) -> None:
    """It has no log and does not say when a subscription begins; nothing is missed all the same."""
    namespace = f"client-test-{os.getpid()}-events"
    async with carina.Client(foreign, namespace=namespace) as client:
        for number in range(20):
            async with client.subscribe('topic=="/snapshot/prepare"') as events:
                await client.snapshotter("native").prepare(f"s{number}")
                event = await anext(events)
                assert (event.fields["key"], event.cursor) == (f"s{number}", None)
            await client.snapshotter("native").remove(f"s{number}")


async def test_namespaces_and_leases(constellation: Constellation) -> None:
    """A client has a namespace, a block may have another; what is made in a lease is held by it."""
    async with carina.Client(constellation.address, namespace=constellation.namespace) as client:
        snapshotter = client.snapshotter("native")
        with client.within(f"{constellation.namespace}-b"):
            await snapshotter.prepare("there")
        with pytest.raises(NotFound):
            await snapshotter.stat("there")
        with client.within(f"{constellation.namespace}-b"):
            await snapshotter.remove("there")
            await client.namespaces.delete(f"{constellation.namespace}-b")
        async with client.lease() as lease:
            await snapshotter.prepare("held")
            (held,) = await client.leases.resources(lease)
        assert (held.type, held.id) == ("snapshots/native", "held")
        assert lease not in [one.id for one in await client.leases.list()]


@pytest.mark.parametrize("server", ["carina", "containerd"])
async def test_images_move(
    constellation: Constellation, foreign: str, reference: str, registry: Registry, server: str, tmp_path: Path
) -> None:
    """Tag, push, export and import, by a service or by the client itself."""
    address = constellation.address if server == "carina" else foreign
    namespace = constellation.namespace if server == "carina" else f"client-test-{os.getpid()}-move"
    with cgroup(namespace):
        await moved(address, namespace, reference, registry, tmp_path / "image.tar")
    assert os.listdir(tmp_path) == ["image.tar"]


async def moved(address: str, namespace: str, reference: str, registry: Registry, archive: Path) -> None:
    tag = namespace
    async with carina.Client(address, namespace=namespace) as client:
        image = await client.fetch(reference)
        tagged = await client.tag(reference, f"example.test/moved:{tag}")
        await client.push(tagged.name, registry.reference("test/moved", tag))
        await client.export_images(archive, tagged.name)
        await client.images.delete(tagged.name)
        (imported,) = await client.import_images(archive)
        assert (imported.name, imported.target.digest) == (tagged.name, image.target.digest)
        assert (await client.run(imported, ["cat", "/etc/motd"])).stdout == b"Carina\n"
        pushed = await client.fetch(registry.reference("test/moved", tag))
        assert pushed.target.digest == image.target.digest
        with pytest.raises(NotFound):
            await client.export_images(archive.with_name("other.tar"), "example.test/absent:1")
        for one in await client.images.list():
            await client.images.delete(one.name, sync=True)


async def test_services_are_reached_without_the_gateway(constellation: Constellation, reference: str) -> None:
    """Where the client may, it connects straight to each: with the gateway's socket gone, all goes on."""
    aside = constellation.socket.with_name("aside")
    async with carina.Client(constellation.address, namespace=constellation.namespace, straight=True) as client:
        constellation.socket.rename(aside)
        try:
            image = await client.pull(reference)
            done = await client.run(image, ["echo", "straight"])
            assert done.stdout == b"straight\n"
        finally:
            aside.rename(constellation.socket)
    async with carina.Client(f"unix://{constellation.state}/carina.sock", straight=True) as client:
        assert [one.name for one in await client.namespaces.list()]


async def test_without_their_sockets_the_gateway_is_used(foreign: str) -> None:
    """A containerd has one socket for everything."""
    async with carina.Client(foreign, namespace="default", straight=True) as client:
        assert await client.images.list() == []
