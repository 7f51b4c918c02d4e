"""The shim's own tables of messages and codes say what the generated ones say."""

from typing import Any

import betterproto2
import pytest

from carina.api.containerd import events
from carina.api.containerd.runc.v1 import CheckpointOptions, Options, ProcessDetails
from carina.api.containerd.runtime.sandbox import v1 as sandbox
from carina.api.containerd.services.events.ttrpc.v1 import ForwardRequest
from carina.api.containerd.task import v3
from carina.api.containerd.types import RuntimeInfo
from carina.api.io.containerd.cgroups import v1 as cgroups1
from carina.api.io.containerd.cgroups import v2 as cgroups2
from carina.api.ttrpc import Request, Response
from carina.errors import InvalidArgument
from carina.rpc.codec import decode as decode_generated
from carina.rpc.codec import encode as encode_generated
from carina.rpc.codes import CLASS_OF
from shimd import messages, metrics1, metrics2
from shimd.ttrpc import CODES
from shimd.wire import MAP, decode, encode

_REQUESTS: dict[str, tuple[type[betterproto2.Message], type[betterproto2.Message] | None]] = {
    "State": (v3.StateRequest, v3.StateResponse),
    "Create": (v3.CreateTaskRequest, v3.CreateTaskResponse),
    "Start": (v3.StartRequest, v3.StartResponse),
    "Delete": (v3.DeleteRequest, v3.DeleteResponse),
    "Pids": (v3.PidsRequest, v3.PidsResponse),
    "Checkpoint": (v3.CheckpointTaskRequest, None),
    "Kill": (v3.KillRequest, None),
    "Exec": (v3.ExecProcessRequest, None),
    "ResizePty": (v3.ResizePtyRequest, None),
    "CloseIO": (v3.CloseIoRequest, None),
    "Update": (v3.UpdateTaskRequest, None),
    "Wait": (v3.WaitRequest, v3.WaitResponse),
    "Stats": (v3.StatsRequest, v3.StatsResponse),
    "Connect": (v3.ConnectRequest, v3.ConnectResponse),
    "Shutdown": (v3.ShutdownRequest, None),
}
_SANDBOX_REQUESTS: dict[str, tuple[type[betterproto2.Message], type[betterproto2.Message] | None]] = {
    "CreateSandbox": (sandbox.CreateSandboxRequest, None),
    "StartSandbox": (sandbox.StartSandboxRequest, sandbox.StartSandboxResponse),
    "Platform": (sandbox.PlatformRequest, sandbox.PlatformResponse),
    "StopSandbox": (sandbox.StopSandboxRequest, None),
    "WaitSandbox": (sandbox.WaitSandboxRequest, sandbox.WaitSandboxResponse),
    "SandboxStatus": (sandbox.SandboxStatusRequest, sandbox.SandboxStatusResponse),
    "PingSandbox": (sandbox.PingRequest, None),
    "ShutdownSandbox": (sandbox.ShutdownSandboxRequest, None),
    "SandboxMetrics": (sandbox.SandboxMetricsRequest, sandbox.SandboxMetricsResponse),
}
_OTHERS: list[tuple[Any, type[betterproto2.Message]]] = [
    (messages.REQUEST, Request),
    (messages.RESPONSE, Response),
    (messages.FORWARD, ForwardRequest),
    (messages.OPTIONS, Options),
    (messages.CHECKPOINT_OPTIONS, CheckpointOptions),
    (messages.PROCESS_DETAILS, ProcessDetails),
    (messages.RUNTIME_INFO, RuntimeInfo),
    (metrics1.METRICS, cgroups1.Metrics),
    (metrics2.METRICS, cgroups2.Metrics),
]


def _sample(schema: Any, number: int = 1) -> dict[str, Any]:
    """A message with a different value in each field."""

    def value(kind: Any, at: int) -> Any:
        if isinstance(kind, list):
            return [value(kind[0], at)]
        if kind == MAP:
            return {f"key{at}": f"value{at}"}
        if not isinstance(kind, str):
            return _sample(kind, at + 1)
        return {"string": f"text{at}", "bytes": b"data%d" % at, "bool": True}.get(kind, 3000)

    return {name: value(kind, number + index) for index, (name, kind) in schema.items()}


def _same(schema: Any, generated: type[betterproto2.Message]) -> None:
    sample = encode(schema, _sample(schema))
    message = decode_generated(generated, sample)
    assert decode(schema, encode_generated(message)) == decode(schema, sample) == _with_empty(schema, _sample(schema))


def _with_empty(schema: Any, values: dict[str, Any]) -> dict[str, Any]:
    assert set(values) == {name for name, _ in schema.values()}
    return values


def test_tables_are_the_generated_messages() -> None:
    """Every field of every table has the number and kind that containerd's messages give it."""
    for method, (request, response) in _REQUESTS.items():
        _same(messages.METHODS[method][0], request)
        if response is not None:
            _same(messages.METHODS[method][1], response)
    assert set(messages.SANDBOX_METHODS) == set(_SANDBOX_REQUESTS)
    for method, (request, response) in _SANDBOX_REQUESTS.items():
        _same(messages.SANDBOX_METHODS[method][0], request)
        if response is not None:
            _same(messages.SANDBOX_METHODS[method][1], response)
    for name, schema in messages.EVENTS.values():
        _same(schema, getattr(events, name.replace("OOM", "Oom")))
    for schema, generated in _OTHERS:
        _same(schema, generated)


def test_codes_are_the_one_table() -> None:
    """An error travels with the code that the library's table gives its class."""
    assert {error: status.value for status, error in CLASS_OF.items()}.items() <= CODES.items()


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x0a\x05ab", b"\x0b", b"\x80" * 20, b"\x08\x01", b"\x0a\x80\x80\x80\x80\x80"]
)
def test_bad_messages_are_refused(data: bytes) -> None:
    """What is not a message of the kind is refused with a sentence, whatever it is."""
    with pytest.raises(InvalidArgument, match="not valid protobuf"):
        decode(messages.CREATE, data)
