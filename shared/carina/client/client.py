"""One object that reaches every service of a constellation, or of a containerd, at one address.

    async with carina.Client("unix:///run/carina/carina.sock", namespace="demo") as client:
        image = await client.pull("docker.io/library/busybox:latest")
        done = await client.run(image, ["echo", "hello"])
        print(done.stdout.decode())

Each service is an interface, and an attribute of the client: `content`, `images`, `snapshotter(NAME)`, `containers`,
`tasks`, `events`, ... What takes several of them is composed here: pull, run, exec. Any of them can be an object of
the caller's own, and then this process does what the services could not do with it. Without an address there is no
service at all: see `carina.embedded`.

Every call can be cancelled at any await; what it had made by then is removed.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carina import context
from carina.client.services import Services
from carina.events import Edge, Start
from carina.oci.options import Options
from carina.transfer import ANONYMOUS, Access, OnProgress

if TYPE_CHECKING:
    from carina.client.container import Completed, Container
    from carina.client.subscription import Subscription
    from carina.images import Image
    from carina.platforms import Platform


class Client(Services):
    """The services at an address, and what is composed of them. See `Services` for the arguments."""

    # Where calls are made.

    def within(self, namespace: str) -> contextlib.AbstractContextManager[context.Call]:
        """Run the block in another namespace."""
        context.validate_identifier(namespace, "namespace")
        return context.within(namespace=namespace)

    def bound(self) -> contextlib.AbstractContextManager[context.Call]:
        """Run the block in the client's namespace, unless the caller is in one."""
        return context.within(namespace=context.current().namespace or self.namespace or None)

    @contextlib.asynccontextmanager
    async def lease(self, *, hours: float = 24) -> AsyncIterator[str]:
        """Keep from collection whatever the block makes, until it ends; gives the lease's id."""
        from carina.client.run import leased

        with self.bound():
            async with leased(self, hours=hours) as id:
                yield id

    # Images. `images` has their records: get, list, update, delete.

    async def pull(
        self,
        reference: str,
        *,
        snapshotter: str = "",
        platforms: "Sequence[Platform]" = (),
        labels: Mapping[str, str] | None = None,
        access: Access = ANONYMOUS,
        on_progress: OnProgress | None = None,
    ) -> "Image":
        """Fetch an image, unpack it for this machine's platform (or each of `platforms`), and record it.

        The reference is completed as people type it. What is here already is not fetched, and a pull that is cancelled
        is gone on with by the next. Raises what `carina.transfer.Transfer.fetch` raises.
        """
        from carina.client import moving

        with self.bound():
            return await moving.fetch(
                self, reference, snapshotter, platforms, labels, access, on_progress, unpack=self.unpacks
            )

    async def fetch(
        self,
        reference: str,
        *,
        platforms: "Sequence[Platform]" = (),
        labels: Mapping[str, str] | None = None,
        access: Access = ANONYMOUS,
        on_progress: OnProgress | None = None,
    ) -> "Image":
        """As `pull`, without unpacking: this takes a content store and image records, and nothing else."""
        from carina.client import moving

        with self.bound():
            return await moving.fetch(self, reference, "", platforms, labels, access, on_progress, unpack=False)

    async def push(
        self,
        name: str,
        reference: str = "",
        *,
        platforms: "Sequence[Platform]" = (),
        access: Access = ANONYMOUS,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Put the image `name` into a registry, under another reference where one is given.

        Raises what `carina.transfer.Transfer.push` raises.
        """
        from carina.client import moving

        with self.bound():
            await moving.push(self, name, reference, platforms, access, on_progress)

    async def unpack(self, image: "Image", *, snapshotter: str = "") -> str:
        """Make an image's layers snapshots, those that are not yet; returns the key of the topmost.

        Raises:
            NotFound: content of the image is not here.
            DataLoss: a layer is not what the image's configuration says.
        """
        from carina.client import run

        with self.bound():
            return await run.unpacked(self, image, snapshotter)

    async def tag(self, name: str, new: str) -> "Image":
        """Give an image a further name. Raises NotFound."""
        from carina.client import moving

        with self.bound():
            return await moving.tag(self, name, new)

    async def import_images(
        self,
        archive: "Path | AsyncIterator[bytes]",
        *,
        name: str = "",
        platforms: "Sequence[Platform]" = (),
        unpack: bool = True,
        snapshotter: str = "",
        on_progress: OnProgress | None = None,
    ) -> "list[Image]":
        """Take the images of an archive (OCI layout or `docker save`), under their own names or under `name`.

        Raises:
            InvalidArgument: it is no image archive.
        """
        from carina.client import moving

        with self.bound():
            unpacked = unpack and self.unpacks
            return await moving.load(self, archive, name, platforms, snapshotter if unpacked else None, on_progress)

    async def export_images(
        self,
        path: Path,
        *names: str,
        platforms: "Sequence[Platform]" = (),
        on_progress: OnProgress | None = None,
    ) -> None:
        """Write images as an archive, which is there when it is whole. Raises NotFound."""
        from carina.client import moving

        with self.bound():
            await moving.save(self, path, names, platforms, on_progress)

    # Containers. `containers` has their records.

    async def create_container(
        self,
        id: str,
        image: "Image",
        args: Sequence[str] = (),
        options: Options | None = None,
        *,
        snapshotter: str = "",
        runtime: str = "",
        user: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> "Container":
        """A container on a new snapshot of an image, which is unpacked where it is not yet.

        `args` replace the image's command; `options` are everything else that a specification can say.

        Raises:
            AlreadyExists: a container or snapshot of that id is there.
            InvalidArgument: the id, or something that is asked for, can't be.
        """
        from carina.client import run
        from carina.client.container import Container

        with self.bound():
            wish = run.wish(id, args, options, snapshotter=snapshotter, runtime=runtime, user=user, labels=labels)
            return Container(self, await run.create(self, image, wish))

    async def container(self, id: str) -> "Container":
        """A container that is there. Raises NotFound."""
        from carina.client.container import Container

        with self.bound():
            return Container(self, await self.containers.get(id))

    async def run(
        self,
        image: "Image",
        args: Sequence[str] = (),
        options: Options | None = None,
        *,
        stdin: bytes = b"",
        id: str = "",
        snapshotter: str = "",
        runtime: str = "",
        user: str = "",
    ) -> "Completed":
        """Run a container to its end, gather what it prints, and remove it.

        Raises what `create_container` and `Container.task` raise, and ResourceExhausted for output of over 64 MiB.
        """
        from carina.client.container import Completed

        name = id or f"run-{secrets.token_hex(6)}"
        making = self.create_container(name, image, args, options, snapshotter=snapshotter, runtime=runtime, user=user)
        async with await making as container:
            async with container.task(stdin=True) as task:
                out, err = await task.communicate(stdin)
                ended = await task.wait()
        return Completed(exit_status=ended.status, stdout=out, stderr=err)

    # Events.

    def subscribe(self, *filters: str, after: Start = Edge.NOW, gaps: bool = False) -> "Subscription":
        """Events that match one of the filters, of every namespace unless a filter says otherwise.

            async with client.subscribe('topic=="/tasks/exit"') as events:
                async for event in events: ...

        `after` is a cursor, a moment, or an edge of the log: what is kept from there on comes first. Restarts of
        services are passed over. With `gaps` it goes on after events that are not kept any more.

        Iterating raises:
            OutOfRange: events that were asked for are not kept any more.
            FailedPrecondition: the cursor is of another log.
            Unavailable: the service is away for minutes; or, without a log, has ended.
            Unimplemented: there is no log that could begin in the past.
        """
        from carina.client.subscription import Subscription

        return Subscription(self, filters, after, gaps=gaps)
