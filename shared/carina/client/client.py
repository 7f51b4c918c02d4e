"""One object that reaches every service of a constellation, or of a containerd, at one address.

async with Client("unix:///run/carina/carina.sock") as client:
    with context.within(namespace="demo"):
        for image in await client.images.list():
            print(image.name)

Without an address it reaches no service, and does what its own stores allow:

async with LocalContentStore(path) as content, Client(content=content, images=LayoutImages(path)) as client:
    await client.transfer.pull("docker.io/library/busybox:latest")
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from carina.config import socket_path
from carina.errors import FailedPrecondition
from carina.rpc.client import Channel, connect

if TYPE_CHECKING:
    from carina.containers import ContainerStore
    from carina.content import ContentStore
    from carina.events import EventLog, EventService
    from carina.images import ImageStore
    from carina.leases import LeaseManager
    from carina.namespaces import NamespaceStore
    from carina.snapshots import Snapshotter
    from carina.tasks import TaskService
    from carina.transfer import Transfer

# An adapter is imported when it is first used: a command that lists images need not load the messages of tasks.


class Client:
    """Connects when first needed. Any service can be replaced by an object that implements its interface.

    Args:
        address: `unix:///path` of a gateway, of a single service, or of a containerd; empty: none.
    """

    def __init__(
        self,
        address: str = "",
        *,
        content: "ContentStore | None" = None,
        images: "ImageStore | None" = None,
        tasks: "TaskService | None" = None,
        transfer: "Transfer | None" = None,
        snapshotters: "dict[str, Snapshotter] | None" = None,
    ) -> None:
        if address:
            socket_path(address)
        self.address = address
        self._content, self._images, self._tasks = content, images, tasks
        self._transfer = transfer
        self._snapshotters = dict(snapshotters or {})

    @property
    def fifo_directory(self) -> Path:
        """Where the FIFOs of processes go: beside the server's socket, as containerd's clients have them."""
        return socket_path(self.address).parent / "fifo"

    @cached_property
    def channel(self) -> Channel:
        if not self.address:
            raise FailedPrecondition("this takes a running constellation, and there is none here")
        return connect(self.address)

    @cached_property
    def content(self) -> "ContentStore":
        from carina.content.client import RemoteContentStore

        return self._content or RemoteContentStore(self.channel)

    @cached_property
    def images(self) -> "ImageStore":
        from carina.images.client import RemoteImageStore

        return self._images or RemoteImageStore(self.channel)

    @cached_property
    def containers(self) -> "ContainerStore":
        from carina.containers.client import RemoteContainerStore

        return RemoteContainerStore(self.channel)

    @cached_property
    def namespaces(self) -> "NamespaceStore":
        from carina.namespaces.client import RemoteNamespaceStore

        return RemoteNamespaceStore(self.channel)

    @cached_property
    def leases(self) -> "LeaseManager":
        from carina.leases.client import RemoteLeaseManager

        return RemoteLeaseManager(self.channel)

    @cached_property
    def events(self) -> "EventService":
        from carina.events.client import RemoteEventService

        return RemoteEventService(self.channel)

    @cached_property
    def event_log(self) -> "EventLog":
        from carina.events.client import RemoteEventLog

        return RemoteEventLog(self.channel)

    @cached_property
    def tasks(self) -> "TaskService":
        from carina.tasks.client import RemoteTaskService

        return self._tasks or RemoteTaskService(self.channel)

    @cached_property
    def transfer(self) -> "Transfer":
        """The Transfer service; without an address, transfers by this process on the stores that it was given."""
        if self._transfer is not None:
            return self._transfer
        if not self.address:
            from carina.client.embedded import transfers

            return transfers(self.content, self.images)
        from carina.transfer.client import RemoteTransfer

        return RemoteTransfer(self.channel)

    def snapshotter(self, name: str) -> "Snapshotter":
        """The snapshotter of that name."""
        from carina.snapshots.client import RemoteSnapshotter

        if name not in self._snapshotters:
            self._snapshotters[name] = RemoteSnapshotter(self.channel, name)
        return self._snapshotters[name]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        if "channel" in self.__dict__:
            self.channel.close()
