"""gRPC servers on unix sockets."""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpclib.server
from grpclib import GRPCError, Status
from grpclib.events import RecvRequest, listen

from carina import errors
from carina.config import socket_path
from carina.context import Call, use
from carina.rpc.codec import Codec
from carina.rpc.codes import to_wire
from carina.rpc.health import Health, Version

log = logging.getLogger(__name__)


class Listener:
    def __init__(self, address: str, health: Health) -> None:
        self.address = address
        self.health = health
        self.calls = 0
        self.draining = False


@contextlib.asynccontextmanager
async def serve(
    address: str,
    handlers: Sequence[Any],
    *,
    name: str,
    mode: int = 0o660,
    gid: int | None = None,
    grace: float = 5.0,
) -> AsyncIterator[Listener]:
    """Serve `handlers` at `unix:///path` until the block ends, then drain for `grace` seconds at the most."""
    listener = Listener(address, Health())
    server = grpclib.server.Server([*handlers, listener.health, Version()], codec=Codec())
    listen(server, RecvRequest, lambda event: _receive(listener, event))
    path = str(socket_path(address))
    bound = _bind(path, mode=mode, gid=gid)
    await server.start(sock=bound)
    try:
        yield listener
    finally:
        listener.draining = True
        limit = time.monotonic() + grace
        while listener.calls and time.monotonic() < limit:
            await asyncio.sleep(0.01)
        server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await server.wait_closed()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _bind(path: str, *, mode: int, gid: int | None) -> socket.socket:
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise errors.NotFound(f"directory {directory} of socket {path} does not exist")
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except OSError:
                pass
            else:
                raise errors.FailedPrecondition(f"socket {path} is in use by another process")
        temporary = f"{path}.{secrets.token_hex(2)}"[:107]
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind(temporary)
        os.chmod(temporary, mode)
        if gid is not None:
            os.chown(temporary, -1, gid)
        made.listen(128)
        made.setblocking(False)
        os.rename(temporary, path)
        os.unlink(f"{path}.lock")
    return made


async def _receive(listener: Listener, event: RecvRequest) -> None:
    method = event.method_func
    metadata = event.metadata
    deadline = event.deadline
    call = Call(
        namespace=_text(metadata.get("containerd-namespace")),
        lease=_text(metadata.get("containerd-lease")),
        trace=_text(metadata.get("traceparent")),
        deadline=time.monotonic() + deadline.time_remaining() if deadline else None,
    )
    if listener.draining:
        raise GRPCError(Status.UNAVAILABLE, "the service is stopping")

    async def handle(stream: Any) -> None:
        listener.calls += 1
        try:
            with use(call):
                await method(stream)
        except (GRPCError, asyncio.CancelledError):
            raise
        except errors.CarinaError as error:
            raise to_wire(error) from error
        except TimeoutError as error:
            raise GRPCError(Status.DEADLINE_EXCEEDED, f"{event.method_name}: deadline exceeded") from error
        except Exception as error:
            identity = secrets.token_hex(4)
            log.exception("%s failed (id %s)", event.method_name, identity)
            raise GRPCError(Status.UNKNOWN, f"internal error, id {identity}") from error
        finally:
            listener.calls -= 1

    event.method_func = handle


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
