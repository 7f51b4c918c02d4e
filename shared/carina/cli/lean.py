"""What libraries load for others and a command never uses, left out of its process.

A command is a process of its own: a tenth of a second of imports is felt each time. The substitutes are for these very
names, only where the process runs one command and nothing else, and only for commands that talk to services.
"""

import contextlib
import importlib
import importlib.machinery
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

_alone = False


def alone() -> None:
    """Say that this process is one command: nobody else's imports are in it."""
    global _alone
    _alone = True


def spare() -> None:
    """Put substitutes in the place of modules that nobody has imported yet."""
    if not _alone or any(name in sys.modules for name in ("grpclib", "betterproto2", "dateutil")):
        return
    server: Any = ModuleType("grpclib.server")
    server.Stream = object  # the annotations of generated services name it
    sys.modules["grpclib.server"] = server
    package: Any = importlib.import_module("grpclib")
    package.server = server
    # It reads the installed packages' metadata to compare versions; `make check-protos` has done that.
    version: Any = ModuleType("betterproto2._version")
    version.__version__ = "unknown"
    version.check_compiler_version = lambda compiler: None
    sys.modules["betterproto2._version"] = version
    _lazy("dateutil", "parser")


@contextlib.contextmanager
def ahead(names: Sequence[str]) -> Iterator[None]:
    """Import modules in a thread while the block waits for answers; whoever needs one earlier waits for that one."""

    def load() -> None:
        for name in names:
            if ended:
                return
            importlib.import_module(name)

    ended: list[bool] = []
    thread = threading.Thread(target=load, name="import ahead")
    thread.start()
    try:
        yield
    finally:
        ended.append(True)
        thread.join()


class _Later(ModuleType):
    """A module that is loaded when something of it is asked for; importlib's lazy ones are when they are imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)


def _lazy(package: str, name: str) -> None:
    """Have a module loaded at its first use (betterproto2 reads moments in JSON with it, which we never ask for)."""
    later = _Later(f"{package}.{name}")
    later.__spec__ = importlib.machinery.ModuleSpec(later.__name__, None)
    sys.modules[later.__name__] = later
    setattr(importlib.import_module(package), name, later)
