"""The services that a client reaches, each by its interface: over a socket, or an object that the client was given."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from carina import context
from carina.config import socket_path
from carina.errors import FailedPrecondition
from carina.rpc.client import Channel, connect

if TYPE_CHECKING:
    from carina.containers import ContainerStore
    from carina.content import ContentStore
    from carina.diff import Differ
    from carina.events import EventLog, EventService
    from carina.images import ImageStore
    from carina.introspection import Introspection
    from carina.leases import LeaseManager
    from carina.namespaces import NamespaceStore
    from carina.sandboxes import SandboxStore
    from carina.snapshots import Snapshotter
    from carina.tasks import TaskService
    from carina.transfer import Transfer

# An adapter is imported when it is first used: a command that lists images need not load the messages of tasks.


class Services:
    """Connects when first needed. Any service can be replaced by an object that implements its interface.

    Args:
        address: `unix:///path` of a gateway, of a single service, or of a containerd; empty: none.
        namespace: of calls that are made in none (`carina.context`).
        snapshotter: where images are unpacked; empty: the namespace's default, else overlayfs.
        runtime: of new containers; empty: the namespace's default, else runc's shim.
        snapshotters: snapshotters of one's own, by name; the others are the server's.
        diff: who applies layers. A store of one's own has its layers applied by this process, if this is not given.
        transfer: who moves images. With `content`, `images`, `leases`, `diff` or a snapshotter of one's own this
            process does, if this is not given.
        straight: connect to the services themselves where this process may, without the gateway in between. Their
            sockets are looked for beside the gateway's. Who waits for a service that hangs then waits as long.
        fifos: directory for the FIFOs of processes; the server's `fifo` directory, if this is not given.
    """

    def __init__(
        self,
        address: str = "",
        *,
        namespace: str = "",
        snapshotter: str = "",
        runtime: str = "",
        content: "ContentStore | None" = None,
        images: "ImageStore | None" = None,
        snapshotters: "Mapping[str, Snapshotter] | None" = None,
        containers: "ContainerStore | None" = None,
        namespaces: "NamespaceStore | None" = None,
        leases: "LeaseManager | None" = None,
        events: "EventService | None" = None,
        event_log: "EventLog | None" = None,
        sandboxes: "SandboxStore | None" = None,
        tasks: "TaskService | None" = None,
        diff: "Differ | None" = None,
        transfer: "Transfer | None" = None,
        straight: bool = False,
        fifos: Path | None = None,
    ) -> None:
        if address:
            socket_path(address)
        if namespace:
            context.validate_identifier(namespace, "namespace")
        self.address = address
        self.namespace = namespace
        self.default_snapshotter, self.default_runtime = snapshotter, runtime
        self._content, self._images, self._containers, self._tasks = content, images, containers, tasks
        self._namespaces, self._leases, self._sandboxes = namespaces, leases, sandboxes
        self._events, self._event_log = events, event_log
        self._diff, self._transfer = diff, transfer
        self._own_snapshotters = dict(snapshotters or {})
        self._snapshotters = dict(self._own_snapshotters)
        self._fifos = fifos
        self._straight = straight
        self._channels: dict[str, Channel] = {}

    @property
    def fifo_directory(self) -> Path:
        """Where the FIFOs of processes go: beside the server's socket, as containerd's clients have them."""
        return self._fifos or socket_path(self.address).parent / "fifo"

    @cached_property
    def channel(self) -> Channel:
        if not self.address:
            raise FailedPrecondition("this takes a running constellation, and there is none here")
        return connect(self.address, namespace=self.namespace)

    def _channel(self, daemon: str) -> Channel:
        """To one of our services, straight or by way of the gateway."""
        if not self._straight:
            return self.channel
        if daemon not in self._channels:
            there = socket_path(self.address).with_name(f"{daemon}.sock")
            # Whether we may connect is asked of the kernel before it is tried: afterwards is too late to choose.
            if not os.access(there, os.R_OK | os.W_OK):
                return self.channel
            self._channels[daemon] = connect(f"unix://{there}", namespace=self.namespace)
        return self._channels[daemon]

    @cached_property
    def content(self) -> "ContentStore":
        from carina.content.client import RemoteContentStore

        return self._content or RemoteContentStore(self._channel("metadatad"))

    @cached_property
    def images(self) -> "ImageStore":
        from carina.images.client import RemoteImageStore

        return self._images or RemoteImageStore(self._channel("metadatad"))

    @cached_property
    def containers(self) -> "ContainerStore":
        from carina.containers.client import RemoteContainerStore

        return self._containers or RemoteContainerStore(self._channel("metadatad"))

    @cached_property
    def namespaces(self) -> "NamespaceStore":
        from carina.namespaces.client import RemoteNamespaceStore

        return self._namespaces or RemoteNamespaceStore(self._channel("metadatad"))

    @cached_property
    def leases(self) -> "LeaseManager":
        from carina.leases.client import RemoteLeaseManager

        return self._leases or RemoteLeaseManager(self._channel("metadatad"))

    @cached_property
    def sandboxes(self) -> "SandboxStore":
        from carina.sandboxes.client import RemoteSandboxStore

        return self._sandboxes or RemoteSandboxStore(self._channel("metadatad"))

    @cached_property
    def events(self) -> "EventService":
        from carina.events.client import RemoteEventService

        return self._events or RemoteEventService(self._channel("metadatad"))

    @cached_property
    def event_log(self) -> "EventLog":
        from carina.events.client import RemoteEventLog

        return self._event_log or RemoteEventLog(self._channel("metadatad"))

    @cached_property
    def tasks(self) -> "TaskService":
        from carina.tasks.client import RemoteTaskService

        return self._tasks or RemoteTaskService(self._channel("taskd"))

    @cached_property
    def introspection(self) -> "Introspection":
        from carina.introspection.client import RemoteIntrospection

        return RemoteIntrospection(self.channel)

    @cached_property
    def diff(self) -> "Differ":
        if self._diff is not None:
            return self._diff
        if self._content is not None or not self.address:
            from carina.client.embedded import differ

            return differ(self.content)
        from carina.diff.client import RemoteDiffer

        return RemoteDiffer(self._channel("imaged"))

    @cached_property
    def transfer(self) -> "Transfer":
        """The Transfer service. Where there is none, or it can't reach what this client was given, this process."""
        if self._transfer is not None:
            return self._transfer
        given = (self._content, self._images, self._leases, self._diff)
        if not self.address or self._own_snapshotters or any(one is not None for one in given):
            return self._composed()
        from carina.client.transfers import available
        from carina.introspection.client import RemoteIntrospection
        from carina.transfer.client import RemoteTransfer

        channel = self._channel("imaged")
        return available(RemoteIntrospection(channel), RemoteTransfer(channel), self._composed)

    def _composed(self) -> "Transfer":
        from carina.client.embedded import transfers

        if self.collects or self._own_snapshotters:
            leases = self.leases if self.collects else None
            return transfers(self.content, self.images, snapshotter=self.snapshotter, differ=self.diff, leases=leases)
        return transfers(self.content, self.images)

    @property
    def collects(self) -> bool:
        """Whether anything is ever collected here: what is not kept by a lease or a reference."""
        return bool(self.address) or self._leases is not None

    @property
    def unpacks(self) -> bool:
        """Whether there is anywhere to unpack to."""
        return bool(self.address or self._own_snapshotters)

    @property
    def available_log(self) -> "EventLog | None":
        """The log of events; None where only a service without one is given."""
        return None if self._events is not None and self._event_log is None else self.event_log

    def snapshotter(self, name: str) -> "Snapshotter":
        """The snapshotter of that name."""
        from carina.snapshots.client import RemoteSnapshotter

        if name not in self._snapshotters:
            self._snapshotters[name] = RemoteSnapshotter(self._channel("metadatad"), name)
        return self._snapshotters[name]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        for channel in self._channels.values():
            channel.close()
        if "channel" in self.__dict__:
            self.channel.close()
