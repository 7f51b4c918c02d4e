"""What a tenant may call: methods, by their paths, with what is allowed where the configuration says nothing else.

The rule for the default: a tenant sees and changes records and content of its namespace, and can have nothing done that
runs as root with its words: no task created, no process executed, nothing mounted, no host path read.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from carina.errors import InvalidArgument
from gatewayd.routes import PLUGIN_INFO, ROUTES

_S: Final = "containerd.services"
_WHOLE: Final = (
    f"{_S}.containers.v1.Containers",
    f"{_S}.content.v1.Content",
    f"{_S}.images.v1.Images",
    f"{_S}.leases.v1.Leases",
    f"{_S}.sandbox.v1.Store",
    f"{_S}.streaming.v1.Streaming",
    f"{_S}.transfer.v1.Transfer",
)
"""Services of which a tenant may call every method."""
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    f"{_S}.events.v1.Events": ("Publish", "Subscribe"),
    f"{_S}.namespaces.v1.Namespaces": ("Get", "List"),
    f"{_S}.snapshots.v1.Snapshots": (
        *("Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage"),
    ),
    # Not Create and Exec, whose specifications, mounts and log URIs are carried out as root; nor Checkpoint and Update.
    f"{_S}.tasks.v1.Tasks": (
        *("Start", "Delete", "DeleteProcess", "Get", "List", "Kill", "Pause", "Resume", "ListPids", "Metrics", "Wait"),
        *("CloseIO", "ResizePty"),
    ),
}
EVERYBODY: Final = (
    f"{_S}.introspection.v1.Introspection/Plugins",
    f"{_S}.introspection.v1.Introspection/Server",
    f"{_S}.version.v1.Version/Version",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
)
"""What says nothing of any namespace."""
UNBOUND: Final = (
    *EVERYBODY,
    f"{_S}.events.v1.Events/Subscribe",
    f"{_S}.namespaces.v1.Namespaces/Get",
    f"{_S}.namespaces.v1.Namespaces/List",
)
"""Methods that need no namespace of the call: their answers are cut to what the tenant may see."""
NEVER: Final = (
    "carina.",
    f"{_S}.events.v1.Events/Forward",
    f"{_S}.namespaces.v1.Namespaces/Create",
    f"{_S}.namespaces.v1.Namespaces/Update",
    f"{_S}.namespaces.v1.Namespaces/Delete",
    f"{_S}.snapshots.v1.Snapshots/Cleanup",
    PLUGIN_INFO[1:],
)
"""What reaches beyond a namespace, and can't be allowed: beginnings of paths."""


class Policy:
    """A set of methods."""

    def __init__(self, words: Iterable[str], where: str) -> None:
        """Raises InvalidArgument: a word is neither `default`, a service, nor a method that can be allowed."""
        self._methods = set(EVERYBODY)
        self._services: set[str] = set()
        for word in words:
            self._allow(word, where)

    def _allow(self, word: str, where: str) -> None:
        service, _, method = word.partition("/")
        if word == "default":
            self._services.update(_WHOLE)
            self._methods.update(f"{name}/{one}" for name, methods in _PARTS.items() for one in methods)
        elif service not in ROUTES:
            raise InvalidArgument(f"{where}.allow: {word!r} is neither default nor a service or method of the API")
        elif word.startswith(NEVER):
            raise InvalidArgument(f"{where}.allow: {word} reaches beyond a namespace, and is for administrators")
        elif method:
            self._methods.add(word)
        else:
            self._services.add(word)

    def allows(self, path: str) -> bool:
        """`path` is `/package.Service/Method`."""
        name = path[1:]
        if name in self._methods:
            return True
        return name.partition("/")[0] in self._services and not name.startswith(NEVER)
