"""A shim that speaks gRPC: containerd's for runc, behind a program that passes every call on to it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpclib.const import Cardinality, Handler

from carina.api.containerd.runtime.sandbox.v1 import SandboxBase
from carina.api.containerd.task.v2 import TaskBase
from carina.config import socket_path
from carina.rpc.server import serve
from carina.ttrpc.client import Client, dial

BEHIND = "containerd-shim-runc-v2"
NAME = "containerd-shim-grpc-v2"


def install(directory: Path, behind: str = BEHIND) -> Path:
    """The program, whose absolute path is a runtime; `behind` is the shim that it starts."""
    directory.mkdir(exist_ok=True)
    path = directory / NAME
    root = Path(__file__).parent.parent
    path.write_text(
        f"#!{sys.executable}\nimport sys\n\nsys.path.insert(0, {str(root)!r})\n"
        f"from support.grpc_shim import main\n\nmain({behind!r})\n"
    )
    path.chmod(0o755)
    return path


class _Passed:
    def __init__(self, client: Client) -> None:
        self._client = client

    def __mapping__(self) -> Mapping[str, Handler]:
        known = {**TaskBase().__mapping__(), **SandboxBase().__mapping__()}
        return {path: self._handler(path, handler) for path, handler in known.items()}

    def _handler(self, path: str, known: Handler) -> Handler:
        async def passed(stream: Any) -> None:
            request = await stream.recv_message()
            answer = await self._client.call(path.removeprefix("/"), request, known.reply_type)
            await stream.send_message(answer)

        return Handler(passed, Cardinality.UNARY_UNARY, known.request_type, known.reply_type)


async def _serve(front: str, behind: str, ready: int) -> None:
    client = await dial(behind)
    async with serve(f"unix://{front}", [_Passed(client)], name="shim"):
        os.close(ready)
        await client.closed()


def _address(answer: str) -> str:
    """Of a shim that tells it alone, or in JSON."""
    return str(json.loads(answer)["address"]) if answer.startswith("{") else answer


def main(behind: str) -> None:
    done = subprocess.run([behind, *sys.argv[1:]], stdin=sys.stdin, stdout=subprocess.PIPE, check=False)
    if done.returncode or sys.argv[-1] != "start":
        sys.stdout.buffer.write(done.stdout)
        sys.exit(done.returncode)
    path = str(socket_path(_address(done.stdout.decode().strip())))
    front = f"{path}.grpc"
    waiting, ready = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(waiting)
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        try:
            asyncio.run(_serve(front, path, ready))
        finally:
            Path(front).unlink(missing_ok=True)
            os._exit(0)
    os.close(ready)
    os.read(waiting, 1)
    print(json.dumps({"version": 2, "address": f"unix://{front}", "protocol": "grpc"}), flush=True)
