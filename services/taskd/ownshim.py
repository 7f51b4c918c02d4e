"""Our own shims: many containers share one, and its socket is where we can tell it is, so that nobody need be asked."""

import os
import socket
from typing import Final

from carina import shim
from taskd.bundle import Bootstrap, Bundle
from taskd.config import Config

_SECONDS: Final = 2.0


def running(bundle: Bundle, config: Config) -> Bootstrap | None:
    """How to reach the shim of the bundle's group, if it runs. Blocks: call it in a thread."""
    spec = (bundle.path / "config.json").read_bytes()
    grouping = os.environ.get(shim.GROUP_VARIABLE) or "namespace"
    group = shim.group(spec, bundle.id, grouping=grouping)
    path = shim.socket(address=str(config.gateway), namespace=bundle.namespace, group=group)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_SECONDS)
        try:
            probe.connect(path)
        except OSError:
            return None
    return Bootstrap(version=shim.VERSION, address=f"unix://{path}", protocol="ttrpc")
