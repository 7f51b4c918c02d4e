"""`start`: the address of the group's shim, which is made unless there is one.

The socket listens before the address is told. The shim is a fork of this process: no second interpreter is started.
"""

import os
import socket as sockets
import sys
from typing import Final

from carina import shim
from carina.errors import InvalidArgument
from shimd.config import Config
from shimd.lock import GroupLock

_JSON_SINCE: Final = 2
_DESCRIPTORS: Final = 1024
"""More than a caller may have left open by mistake."""


def begin(config: Config) -> None:
    """Print how to reach the shim; the one that was made stays behind.

    Raises:
        InvalidArgument: the container or its namespace is not named.
    """
    if not config.namespace or not config.id:
        raise InvalidArgument("start needs -namespace and -id")
    path = socket_path(config)
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    with GroupLock(path) as held:
        held.wait()
        listener = None if _answers(path) else _listen(path)
        if listener is not None and os.fork() == 0:
            held.leave()
            _stay(config, listener, path)
    os.write(1, _told(config, path))


def socket_path(config: Config) -> str:
    """The socket of the group that the bundle belongs to."""
    return shim.socket(address=config.address, namespace=config.namespace, group=_group(config))


def sandbox(config: Config) -> str:
    """The sandbox that the whole group would be in: it has the name of the container that the shim was started for."""
    return config.id if _group(config).partition("/")[2] == config.id else ""


def _group(config: Config) -> str:
    try:
        with open(os.path.join(config.bundle, "config.json"), "rb") as file:
            spec = file.read()
    except FileNotFoundError:
        spec = b""
    return shim.group(spec, config.id, grouping=config.grouping)


def _answers(path: str) -> bool:
    with sockets.socket(sockets.AF_UNIX) as own:
        try:
            own.connect(path)
        except OSError:
            return False
        return True


def _listen(path: str) -> sockets.socket:
    listener = sockets.socket(sockets.AF_UNIX)
    temporary = f"{path}.new"
    if os.path.exists(temporary):
        os.unlink(temporary)
    listener.bind(temporary)
    os.chmod(temporary, 0o600)
    listener.listen(1024)
    os.rename(temporary, path)
    return listener


def _told(config: Config, path: str) -> bytes:
    address = f"unix://{path}"
    if config.bootstrap < _JSON_SINCE:
        return address.encode()
    version = min(config.bootstrap, shim.VERSION)
    return f'{{"version": {version}, "address": "{address}", "protocol": "ttrpc"}}'.encode()


def _stay(config: Config, listener: sockets.socket, path: str) -> None:
    """Become the shim, and end with it."""
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2) if not os.environ.get("CARINA_SHIM_TRACE") else (0, 1):
            os.dup2(null, descriptor)
        os.closerange(3, listener.fileno())
        os.closerange(listener.fileno() + 1, _DESCRIPTORS)
        # With it `runc start` would wait for the container to say that it is ready.
        os.environ.pop("NOTIFY_SOCKET", None)
        from shimd.daemon import serve

        serve(config, listener, path)
        status = 0
    except BaseException as error:
        from shimd.journal import failed

        failed("the shim", error, bundle=config.bundle)
    finally:
        sys.stdout.flush()
        os._exit(status)
