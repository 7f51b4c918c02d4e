"""A shim spoken to directly, past the service that started it: for whoever looks into what it does.

The bundle of a task says how its shim is reached: `bootstrap.json`, or `address` as older containerds write it.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from carina.api.containerd.task import v2, v3
from carina.api.google.protobuf import Empty
from carina.errors import NotFound, PermissionDenied
from carina.rpc import unary
from carina.rpc.any import value_to_wire
from carina.tasks import Stdio
from carina.ttrpc import client as ttrpc
from carina.typed import TypedValue

BUNDLES: Final = "io.containerd.runtime.v2.task"
_MODULES: Final[dict[int, Any]] = {2: v2, 3: v3}


class Shim:
    """The Task service of the shim of one container."""

    def __init__(self, connection: Any, id: str, version: int) -> None:
        self._connection = connection
        self._id = id
        self._api = _MODULES[version]
        self._service = f"containerd.task.v{version}.Task"

    async def state(self) -> dict[str, Any]:
        """What the shim says of the container's process. Raises NotFound."""
        answer = await self._call("State", self._api.StateRequest(id=self._id), self._api.StateResponse)
        found: dict[str, Any] = {
            "id": answer.id,
            "bundle": answer.bundle,
            "pid": answer.pid,
            "status": answer.status.name,
            "stdin": answer.stdin,
            "stdout": answer.stdout,
            "stderr": answer.stderr,
            "terminal": answer.terminal,
            "exit_status": answer.exit_status,
            "exited_at": answer.exited_at,
        }
        return found

    async def start(self) -> int:
        """Start the process that was created; returns its pid."""
        answer = await self._call("Start", self._api.StartRequest(id=self._id), self._api.StartResponse)
        return int(answer.pid)

    async def delete(self) -> int:
        """Delete the process that has ended; returns its exit status."""
        answer = await self._call("Delete", self._api.DeleteRequest(id=self._id), self._api.DeleteResponse)
        return int(answer.exit_status)

    async def exec(self, exec_id: str, spec: TypedValue, stdio: Stdio) -> int:
        """Run a further process; returns its pid."""
        request = self._api.ExecProcessRequest(
            id=self._id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=value_to_wire(spec),
        )
        await self._call("Exec", request, Empty)
        started = self._api.StartRequest(id=self._id, exec_id=exec_id)
        answer = await self._call("Start", started, self._api.StartResponse)
        return int(answer.pid)

    async def _call(self, method: str, request: Any, response: Any) -> Any:
        return await self._connection.call(f"{self._service}/{method}", request, response)


@contextlib.asynccontextmanager
async def shim(state: Path, namespace: str, id: str) -> AsyncIterator[Shim]:
    """The shim of a container, by the bundle below the server's state directory.

    Raises:
        NotFound: there is no such bundle, or it does not say how its shim is reached.
        Unavailable: nobody answers.
    """
    protocol, address, version = _address(state / BUNDLES / namespace / id, id)
    path = address.removeprefix("unix://")
    connection: Any = await (unary.dial(path) if protocol == "grpc" else ttrpc.dial(path))
    try:
        yield Shim(connection, id, version)
    finally:
        connection.close()
        await connection.closed()


def _address(bundle: Path, id: str) -> tuple[str, str, int]:
    try:
        with contextlib.suppress(FileNotFoundError):
            found = json.loads((bundle / "bootstrap.json").read_text())
            return found.get("protocol", "ttrpc"), found["address"], min(max(int(found.get("version", 2)), 2), 3)
        return "ttrpc", (bundle / "address").read_text().strip(), 2
    except PermissionError as error:
        raise PermissionDenied(f"the bundle of task {id} is not readable: try again as root") from error
    except (OSError, ValueError, KeyError) as error:
        raise NotFound(f"task {id} has no shim: {bundle} does not say how it is reached") from error
