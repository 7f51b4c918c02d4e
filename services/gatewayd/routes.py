"""Which service answers which method: by the gRPC service's full name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ROUTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "carina.backup.v1.Backup": "metadatad",
        "carina.check.v1.Check": "metadatad",
        "carina.content.v1.Lane": "metadatad",
        "carina.events.v1.Log": "metadatad",
        "carina.gc.v1.GC": "metadatad",
        "carina.images.v1.Referrers": "imaged",
        "carina.plugins.v1.Plugins": "metadatad",
        "containerd.services.containers.v1.Containers": "metadatad",
        "containerd.services.content.v1.Content": "metadatad",
        "containerd.services.diff.v1.Diff": "imaged",
        "containerd.services.events.v1.Events": "metadatad",
        "containerd.services.images.v1.Images": "metadatad",
        "containerd.services.leases.v1.Leases": "metadatad",
        "containerd.services.namespaces.v1.Namespaces": "metadatad",
        "containerd.services.sandbox.v1.Controller": "taskd",
        "containerd.services.sandbox.v1.Store": "metadatad",
        "containerd.services.snapshots.v1.Snapshots": "metadatad",
        "containerd.services.streaming.v1.Streaming": "imaged",
        "containerd.services.tasks.v1.Tasks": "taskd",
        "containerd.services.transfer.v1.Transfer": "imaged",
    }
)
"""gRPC service -> daemon. Not here: what the gateway answers itself, and Mounts, which is UNIMPLEMENTED."""

STREAMS: Final = (
    "/carina.backup.v1.Backup/Read",
    "/carina.check.v1.Check/Run",
    "/carina.events.v1.Log/Subscribe",
    "/carina.gc.v1.GC/Plan",
    "/carina.gc.v1.GC/PlanImages",
    "/carina.gc.v1.GC/Usage",
    "/containerd.services.containers.v1.Containers/ListStream",
    "/containerd.services.content.v1.Content/List",
    "/containerd.services.content.v1.Content/Read",
    "/containerd.services.events.v1.Events/Subscribe",
    "/containerd.services.snapshots.v1.Snapshots/List",
)
"""Methods that answer with a stream: what is passed on undecoded does not tell, and metrics say it."""
BOTH_WAYS: Final = (
    "/containerd.services.content.v1.Content/Write",
    "/containerd.services.streaming.v1.Streaming/Stream",
)

PLUGIN_INFO: Final = "/containerd.services.introspection.v1.Introspection/PluginInfo"
"""Describes a runtime, which is taskd's business; the other methods of Introspection are the gateway's."""

PLUGINS: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "containers": "metadatad",
        "content": "metadatad",
        "diff": "imaged",
        "events": "metadatad",
        "healthcheck": None,
        "images": "metadatad",
        "introspection": None,
        "leases": "metadatad",
        "namespaces": "metadatad",
        "sandbox-controllers": "taskd",
        "sandboxes": "metadatad",
        "snapshots": "metadatad",
        "streaming": "imaged",
        "tasks": "taskd",
        "transfer": "imaged",
        "version": None,
    }
)
"""Plugins of type io.containerd.grpc.v1 as containerd names them -> the daemon that stands behind each, if any."""


def daemon(path: str) -> str | None:
    """The daemon that answers a method, by the method's path `/package.Service/Method`."""
    if path == PLUGIN_INFO:
        return "taskd"
    return ROUTES.get(path[1 : path.rfind("/")])
