"""Where our own shims are found: which containers share one, and the socket of each. taskd and the shims agree by this.

Light to import: a shim's `start` waits for it.
"""

import hashlib
import os
from typing import Final

BINARY: Final = "containerd-shim-carina-v1"
DIRECTORY: Final = "/run/containerd/s"
GROUP_VARIABLE: Final = "CARINA_SHIM_GROUP"
"""Environment: `namespace` (the default), `pod` or `container` share a shim."""
GROUPINGS: Final = ("namespace", "pod", "container")
VERSION: Final = 3
"""Of the Task API."""
_GROUP_ANNOTATION: Final = "io.containerd.runc.v2.group"
_POD_ANNOTATION: Final = "io.kubernetes.cri.sandbox-id"


def group(spec: bytes, id: str, *, grouping: str) -> str:
    """The name of a container's group: an annotation names one, or the pod, the namespace (empty) or the container."""
    wanted = (_GROUP_ANNOTATION,) if grouping != "pod" else (_GROUP_ANNOTATION, _POD_ANNOTATION)
    if any(name.encode() in spec for name in wanted):
        import json  # here, since most specifications need not be read

        try:
            annotations = json.loads(spec).get("annotations") or {}
            for name in wanted:
                if annotations.get(name):
                    return f"group/{annotations[name]}"
        except (ValueError, AttributeError, RecursionError):
            pass
    return "" if grouping == "namespace" else f"container/{id}"


def socket(*, address: str, namespace: str, group: str) -> str:
    """Path of the socket of a group's shim, which belongs to the daemon behind `address`."""
    name = hashlib.sha256("\0".join(("carina", address, namespace, group)).encode()).hexdigest()
    return os.path.join(DIRECTORY, name)
