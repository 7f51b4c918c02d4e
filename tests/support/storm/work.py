"""What clients do in a storm: pull, run, execute, import, write, label, lease, remove and collect, at random.

An object belongs to one client, so its state is known. Once a call about it has failed it is left alone
until the round's end: the call may have happened, and may even happen later.
"""

import asyncio
import contextlib
import json
import random
import signal
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from carina import context
from carina.client import Client
from carina.client.run import Wish, create, remove, rootfs
from carina.content import Info
from carina.digest import Digest
from carina.errors import CarinaError, FailedPrecondition, NotFound, Unavailable
from carina.gc.client import RemoteCollector
from carina.leases import Lease
from carina.oci import spec as oci
from carina.platforms import host
from support.image import Image
from support.ledger import ABSENT, Key, Values, present
from support.spec import exec_spec
from support.storm.accounts import Accounts, Run
from support.storm.peers import Ours, Peer

CALL_SECONDS: Final = 25.0
STUCK_SECONDS: Final = 100.0
"""No operation of a client lasts as long as this; each has deadlines that are shorter."""
ROOT: Final = {"containerd.io/gc.root": "storm"}
RUNTIMES: Final = ("io.containerd.runc.v2", "io.containerd.carina.v1")
UNPACKED_NOT: Final = ", not unpacked"
T = TypeVar("T")


class Refused(CarinaError):
    """A command line client has failed."""


def data_of(key: Key) -> bytes:
    return random.Random(key[1]).randbytes(random.Random(f"size {key[1]}").randrange(1, 300_000))


class Worker:
    """One client in one namespace."""

    def __init__(
        self, peer: Peer, accounts: Accounts, name: str, namespace: str, *, images: Mapping[str, Image], seed: str
    ) -> None:
        self.peer, self.accounts, self.name, self.namespace = peer, accounts, name, namespace
        self.images = images
        """Reference -> image, in the registry, for this client alone."""
        self.client = Client(f"unix://{peer.socket}")
        self.chance = random.Random(seed)
        self.stop = asyncio.Event()
        self._serial = 0
        self._keeper: Run | None = None
        """A container that runs for the whole round, for processes to be executed in."""
        self._ours = isinstance(peer, Ours)

    async def work(self) -> None:
        choices: list[tuple[Callable[[], Coroutine[Any, Any, None]], int]] = [
            (self.write, 5), (self.relabel, 4), (self.delete, 2), (self.lease, 2), (self.pull, 3),
            (self.run, 6), (self.execute, 4), (self.remove_image, 1), (self.load, 1), (self.collect, 1),
        ]  # fmt: skip
        calls, weights = zip(*choices, strict=True)
        with context.within(namespace=self.namespace):
            while not self.stop.is_set():
                call = self.chance.choices(calls, weights)[0]
                await self._attempt(call)
            await self._attempt(self.let_go)

    async def _attempt(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        kind = call.__name__
        begun = time.monotonic()
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                with context.deadline(CALL_SECONDS):
                    await call()
        except TimeoutError:
            self.accounts.stuck.append(f"{kind} of {self.name} after {time.monotonic() - begun:.0f} s")
        except (CarinaError, OSError) as error:
            self.accounts.failed(kind, error)
            await asyncio.sleep(0.05)

    async def _step(self, kind: str, effects: Mapping[Key, Values], call: Awaitable[T]) -> T:
        self.accounts.doubtful |= effects.keys()
        result = await self.accounts.ledger.step(effects, call)
        self.accounts.doubtful -= effects.keys()
        self.accounts.done(kind)
        return result

    def _new(self, kind: str) -> Key:
        self._serial += 1
        return kind, f"{self.namespace}/{self.name}-{self._serial}"

    def _known(self, kind: str) -> list[Key]:
        """Own objects of a kind that are certainly there."""
        allowed = self.accounts.ledger.allowed()
        prefix = f"{self.namespace}/{self.name}-" if kind != "image" else f"{self.namespace}/"
        own = [key for key in allowed if key[0] == kind and key[1].startswith(prefix)]
        own = [key for key in own if kind != "image" or key[1].partition("/")[2] in self.images]
        return [key for key in own if key not in self.accounts.doubtful and None not in allowed[key]]

    async def write(self) -> None:
        """A blob with a root's label."""
        await self._write(self._new("blob"), ROOT)

    async def _write(self, key: Key, labels: Mapping[str, str]) -> Digest:
        data = data_of(key)
        digest = Digest.of(data)
        async with await self.client.content.writer(key[1], total=len(data), expected=digest) as writer:
            await writer.write(data)
            value = present(tuple(sorted(labels.items())))
            await self._step("write", {key: value}, writer.commit(expected=digest, labels=labels))
        return digest

    async def relabel(self) -> None:
        for key in self._some("blob"):
            labels = {**ROOT, "storm": str(self.chance.random())}
            info = Info(digest=Digest.of(data_of(key)), labels=labels)
            values = {key: present(tuple(sorted(labels.items())))}
            await self._step("label", values, self.client.content.update(info, ["labels"]))

    async def delete(self) -> None:
        for key in self._some("blob"):
            await self._step("delete", {key: ABSENT}, self.client.content.delete(Digest.of(data_of(key))))

    def _some(self, kind: str) -> list[Key]:
        known = self._known(kind)
        return [self.chance.choice(known)] if known else []

    async def lease(self) -> None:
        """Make a lease with a blob that only it keeps; or give one up, and the blob with it."""
        if known := self._some("lease"):
            blob = ("leased", known[0][1])
            id = known[0][1].replace("/", "-")
            await self._step("lease", {known[0]: ABSENT, blob: ABSENT | self._now(blob)}, self.client.leases.delete(id))
            return
        key = self._new("lease")
        id = key[1].replace("/", "-")
        await self._step("lease", {key: present("there")}, self.client.leases.create(Lease(id=id)))
        with context.within(lease=id):
            await self._write(("leased", key[1]), {})

    def _now(self, key: Key) -> Values:
        return self.accounts.ledger.allowed().get(key, ABSENT)

    async def pull(self) -> None:
        reference = self.chance.choice([*self.images])
        key = ("image", f"{self.namespace}/{reference}")
        if key in self.accounts.doubtful:
            return
        digest = self.images[reference].digest
        value = {key: present(digest)}
        if self._ours and self.chance.random() < 0.7:
            pulling = self._transfer(reference)
        else:
            # `ctr` records an image, and unpacks it then.
            value = {key: present(digest) | present(f"{digest}{UNPACKED_NOT}")}
            pulling = self._ctr("images", "pull", "--plain-http", reference)
        with context.no_deadline():
            await self._step("pull", value, pulling)
        await self.accounts.ledger.step({key: present(digest)}, asyncio.sleep(0))

    async def _transfer(self, reference: str) -> None:
        try:
            async with asyncio.timeout(60):
                unpack = [(host(), "overlayfs")]
                await self.client.transfer.pull(reference, platforms=[host()], unpack=unpack, plain_http=True)
        except TimeoutError:
            raise Refused(f"the pull of {reference} took more than a minute") from None

    async def _ctr(self, *arguments: str) -> None:
        command = ["ctr", "--address", str(self.peer.socket), "--namespace", self.namespace, *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(60):
                said, _ = await process.communicate()
        except TimeoutError:
            raise Refused(f"{' '.join(arguments[:2])} took more than a minute") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise Unavailable(said.decode(errors="replace")[-300:])

    async def remove_image(self) -> None:
        for key in self._some("image"):
            name = key[1].partition("/")[2]
            await self._step("remove image", {key: ABSENT}, self.client.images.delete(name, sync=True))

    async def load(self) -> None:
        """Import an archive of an image that has a layer of its own."""
        reference = self.chance.choice([*self.images])
        self._serial += 1
        name = f"imported.example/{self.name}:{self._serial}"
        key = ("loaded", f"{self.namespace}/{name}")
        image = self.images[reference]
        with tempfile.TemporaryDirectory(prefix="storm-") as scratch:
            archive = await asyncio.to_thread(_archive, Path(scratch), image, name)
            with context.no_deadline():
                await self._step("import", {key: present(image.digest)}, self._ctr("images", "import", str(archive)))

    async def collect(self) -> None:
        if self._ours:
            await RemoteCollector(self.client.channel).run(sync=True)
            self.accounts.done("collect")

    async def run(self) -> None:
        """A container's whole life."""
        status = self.chance.randrange(1, 100)
        run = await self._start(f"sleep {self.chance.random():.2f}; exit {status}", status)
        if run is not None:
            ended = await self.client.tasks.wait(run.id)
            self._told(run, ended.status)
            await self._remove(run)

    def _told(self, run: Run, status: int) -> None:
        run.seen = status
        if not run.allows(status):
            self.accounts.lost.append(f"container {run.id} ended with {status}, not with {run.status}")

    async def _start(self, script: str, status: int) -> Run | None:
        known = self._some("image")
        if not known:
            await self.pull()
            return None
        self._serial += 1
        run = Run(id=f"{self.name}-{self._serial:04}", namespace=self.namespace, status=status)
        self.accounts.runs.append(run)
        image = await self.client.images.get(known[0][1].partition("/")[2])
        runtime = self.chance.choice(RUNTIMES) if self._ours else RUNTIMES[0]
        wish = Wish(id=run.id, runtime=runtime, options=oci.Options(args=("sh", "-c", script)))
        container = await create(self.client, image, wish)
        await self.client.tasks.create(run.id, rootfs=await rootfs(self.client, container))
        await self.client.tasks.start(run.id)
        run.started = True
        self.accounts.done("run")
        return run

    async def _remove(self, run: Run) -> None:
        await self.client.tasks.delete(run.id)
        await remove(self.client, await self.client.containers.get(run.id))
        run.removed = True
        self.accounts.done("remove")

    async def execute(self) -> None:
        """A further process in the container that stays."""
        if self._keeper is None:
            trap = "trap 'exit 41' TERM; while :; do sleep 0.1; done"
            self._keeper = await self._start(trap, 41)
            return
        self._serial += 1
        id, status = f"exec-{self._serial}", self.chance.randrange(1, 100)
        tasks = self.client.tasks
        keeper = self._keeper
        try:
            await tasks.exec(keeper.id, id, exec_spec("sh", "-c", f"exit {status}"))
            await tasks.start(keeper.id, id)
            ended = await tasks.wait(keeper.id, id)
            if ended.status != status and not keeper.excused:
                self.accounts.lost.append(f"process {id} in {keeper.id} ended with {ended.status}, not with {status}")
            await tasks.delete(keeper.id, id)
        except (NotFound, FailedPrecondition):
            self._keeper = None  # it has ended: the round's end says whether it should have
            raise
        self.accounts.done("exec")

    async def let_go(self) -> None:
        """End the container that stays by its own means."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await self.client.tasks.kill(keeper.id, signal.SIGTERM)
            self._told(keeper, (await self.client.tasks.wait(keeper.id)).status)
            await self._remove(keeper)

    async def tidy(self, run: Run) -> list[str]:
        """Remove what is left of a container after the storm, and say what was wrong with it."""
        wrong = []
        with context.within(namespace=run.namespace), context.deadline(CALL_SECONDS):
            try:
                await self.client.tasks.get(run.id)
            except NotFound:
                if run.started and run.seen is None and not run.excused:
                    wrong.append(f"the task of {run.id}, whose start was acknowledged, is not there")
            else:
                if run.removed:
                    wrong.append(f"the task of {run.id}, whose removal was acknowledged, is there")
                wrong += await self._end(run)
            await self._forget(run)
        return wrong

    async def _end(self, run: Run) -> list[str]:
        tasks = self.client.tasks
        with contextlib.suppress(NotFound, FailedPrecondition):
            if run.status == 41 or not run.started:
                await tasks.kill(run.id, signal.SIGTERM if run.started else signal.SIGKILL)
        wrong = []
        ended = await tasks.wait(run.id)
        if run.started and not run.allows(ended.status):
            wrong.append(f"{run.id} ended with {ended.status}, not with {run.status}")
        with contextlib.suppress(NotFound):
            await tasks.delete(run.id)
        return wrong

    async def _forget(self, run: Run) -> None:
        try:
            container = await self.client.containers.get(run.id)
        except NotFound:
            with contextlib.suppress(NotFound):
                await self.client.snapshotter("overlayfs").remove(run.id)
            return
        with contextlib.suppress(NotFound):
            await remove(self.client, container)

    def close(self) -> None:
        if "channel" in self.client.__dict__:
            self.client.channel.close()


def _archive(directory: Path, image: Image, name: str) -> Path:
    """An OCI archive whose index names the image as `ctr images import` records it."""
    layout = directory / "layout"
    layout.mkdir()
    image.write(layout, name)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": name}
    (layout / "index.json").write_text(json.dumps(index))
    path = directory / "image.tar"
    with tarfile.open(path, "w") as archive:
        for entry in sorted(layout.rglob("*")):
            archive.add(entry, entry.relative_to(layout).as_posix(), recursive=False)
    return path


@contextlib.asynccontextmanager
async def closing(workers: list[Worker]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            worker.close()
