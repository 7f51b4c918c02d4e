"""Small runtime specifications for tests: a process in namespaces of its own, on a root of busybox."""

import json
import shutil
from pathlib import Path
from typing import Any

from carina.typed import TypedValue

SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
_APPLETS = ("sh", "sleep", "cat", "echo", "true", "false", "stty", "kill", "ps", "tty")


def make_rootfs(directory: Path) -> Path:
    """A root file system with a static busybox and its usual names."""
    for name in ("bin", "proc", "dev", "sys", "tmp", "run", "etc"):
        (directory / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    for applet in _APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    return directory


def process(*arguments: str, terminal: bool = False) -> dict[str, Any]:
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(arguments),
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")},
    }


def spec(
    namespace: str,
    id: str,
    *arguments: str,
    terminal: bool = False,
    annotations: dict[str, str] | None = None,
    memory: int | None = None,
) -> TypedValue:
    """Its cgroup is `/<namespace>/<id>`, as containerd's clients have it."""
    table = {
        "ociVersion": "1.0.2",
        "process": process(*arguments, terminal=terminal),
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "gid=5"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        ],
        "annotations": annotations or {},
        "linux": {
            "cgroupsPath": f"/{namespace}/{id}",
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount")],
            "resources": {
                "devices": [{"allow": True, "access": "rwm"}],
                **({"memory": {"limit": memory}} if memory else {}),
            },
        },
    }
    return TypedValue(SPEC, json.dumps(table).encode())


def exec_spec(*arguments: str, terminal: bool = False) -> TypedValue:
    return TypedValue(PROCESS, json.dumps(process(*arguments, terminal=terminal)).encode())
