"""What the `start` of a shim's binary prints: how the shim is reached."""

import json
from typing import Final

from carina.api.containerd.runtime.bootstrap.v1 import BootstrapResult
from carina.config import socket_path
from carina.errors import CarinaError, InvalidArgument, Unimplemented
from carina.rpc.codec import decode
from taskd.bundle import Bootstrap

VERSIONS: Final = (2, 3)
"""Of the Task API; its messages are the same."""
TTRPC: Final = "ttrpc"
GRPC: Final = "grpc"


def parse_bootstrap(output: bytes, who: str) -> Bootstrap:
    """What `start` printed: a protobuf BootstrapResult (2.3), JSON (2.0 to 2.2) or the address alone (1.x).

    Raises:
        CarinaError: none of them.
        Unimplemented: a protocol or version that is not spoken here.
    """
    found = _parse_protobuf(output) or _parse_json(output)
    if found is None:
        text = output.strip().decode(errors="replace")
        found = Bootstrap(version=2, address=text, protocol=TTRPC)
    try:
        socket_path(found.address)
    except InvalidArgument as error:
        raise CarinaError(f"{who} answered no address but {output[:200]!r}") from error
    if found.protocol not in (TTRPC, GRPC) or found.version not in VERSIONS:
        said = f"{found.protocol[:40]} version {found.version}"
        raise Unimplemented(f"{who} speaks {said}: expected ttrpc or grpc, version 2 or 3")
    return found


def _parse_protobuf(output: bytes) -> Bootstrap | None:
    try:
        found = decode(BootstrapResult, output)
    except CarinaError:
        return None
    if not found.address or not found.version:
        return None
    return Bootstrap(version=found.version, address=found.address, protocol=found.protocol or TTRPC)


def _parse_json(output: bytes) -> Bootstrap | None:
    try:
        found = json.loads(output)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("version"), int):
        return None
    return Bootstrap(
        version=found["version"],
        address=str(found.get("address", "")),
        protocol=str(found.get("protocol") or TTRPC),
    )
