"""The messages that a shim speaks, as tables for `shimd.wire`. A test holds them against the generated ones."""

from typing import Final

from shimd.wire import BOOL, BYTES, INT, MAP, STRING, UINT, Schema

EMPTY: Final[Schema] = {}
ANY: Final[Schema] = {1: ("type_url", STRING), 2: ("value", BYTES)}
TIMESTAMP: Final[Schema] = {1: ("seconds", INT), 2: ("nanos", INT)}
MOUNT: Final[Schema] = {1: ("type", STRING), 2: ("source", STRING), 3: ("target", STRING), 4: ("options", [STRING])}

STATUS: Final[Schema] = {1: ("code", INT), 2: ("message", STRING)}
PAIR: Final[Schema] = {1: ("key", STRING), 2: ("value", STRING)}
REQUEST: Final[Schema] = {
    1: ("service", STRING),
    2: ("method", STRING),
    3: ("payload", BYTES),
    4: ("timeout_nano", INT),
    5: ("metadata", [PAIR]),
}
RESPONSE: Final[Schema] = {1: ("status", STATUS), 2: ("payload", BYTES)}

_PROCESS: Final[Schema] = {1: ("id", STRING), 2: ("exec_id", STRING)}
_ID: Final[Schema] = {1: ("id", STRING)}
_EXIT: Final[Schema] = {1: ("exit_status", UINT), 2: ("exited_at", TIMESTAMP)}
_PID: Final[Schema] = {1: ("pid", UINT)}

CREATE: Final[Schema] = {
    1: ("id", STRING),
    2: ("bundle", STRING),
    3: ("rootfs", [MOUNT]),
    4: ("terminal", BOOL),
    5: ("stdin", STRING),
    6: ("stdout", STRING),
    7: ("stderr", STRING),
    8: ("checkpoint", STRING),
    9: ("parent_checkpoint", STRING),
    10: ("options", ANY),
}
DELETED: Final[Schema] = {1: ("pid", UINT), 2: ("exit_status", UINT), 3: ("exited_at", TIMESTAMP)}
EXEC: Final[Schema] = {
    1: ("id", STRING),
    2: ("exec_id", STRING),
    3: ("terminal", BOOL),
    4: ("stdin", STRING),
    5: ("stdout", STRING),
    6: ("stderr", STRING),
    7: ("spec", ANY),
}
RESIZE: Final[Schema] = {1: ("id", STRING), 2: ("exec_id", STRING), 3: ("width", UINT), 4: ("height", UINT)}
STATE: Final[Schema] = {
    1: ("id", STRING),
    2: ("bundle", STRING),
    3: ("pid", UINT),
    4: ("status", UINT),
    5: ("stdin", STRING),
    6: ("stdout", STRING),
    7: ("stderr", STRING),
    8: ("terminal", BOOL),
    9: ("exit_status", UINT),
    10: ("exited_at", TIMESTAMP),
    11: ("exec_id", STRING),
}
KILL: Final[Schema] = {1: ("id", STRING), 2: ("exec_id", STRING), 3: ("signal", UINT), 4: ("all", BOOL)}
CLOSE_IO: Final[Schema] = {1: ("id", STRING), 2: ("exec_id", STRING), 3: ("stdin", BOOL)}
PROCESS_INFO: Final[Schema] = {1: ("pid", UINT), 2: ("info", ANY)}
PROCESS_DETAILS: Final[Schema] = {1: ("exec_id", STRING)}
PIDS: Final[Schema] = {1: ("processes", [PROCESS_INFO])}
CHECKPOINT: Final[Schema] = {1: ("id", STRING), 2: ("path", STRING), 3: ("options", ANY)}
UPDATE: Final[Schema] = {1: ("id", STRING), 2: ("resources", ANY), 3: ("annotations", MAP)}
STATS: Final[Schema] = {1: ("stats", ANY)}
CONNECT: Final[Schema] = {1: ("shim_pid", UINT), 2: ("task_pid", UINT), 3: ("version", STRING)}
SHUTDOWN: Final[Schema] = {1: ("id", STRING), 2: ("now", BOOL)}

METHODS: Final[dict[str, tuple[Schema, Schema]]] = {
    "State": (_PROCESS, STATE),
    "Create": (CREATE, _PID),
    "Start": (_PROCESS, _PID),
    "Delete": (_PROCESS, DELETED),
    "Pids": (_ID, PIDS),
    "Pause": (_ID, EMPTY),
    "Resume": (_ID, EMPTY),
    "Checkpoint": (CHECKPOINT, EMPTY),
    "Kill": (KILL, EMPTY),
    "Exec": (EXEC, EMPTY),
    "ResizePty": (RESIZE, EMPTY),
    "CloseIO": (CLOSE_IO, EMPTY),
    "Update": (UPDATE, EMPTY),
    "Wait": (_PROCESS, _EXIT),
    "Stats": (_ID, STATS),
    "Connect": (_ID, CONNECT),
    "Shutdown": (SHUTDOWN, EMPTY),
}
"""The Task service, v2 and v3: request and response of each method."""

_SANDBOX: Final[Schema] = {1: ("sandbox_id", STRING)}
_PLATFORM: Final[Schema] = {1: ("os", STRING), 2: ("architecture", STRING), 3: ("variant", STRING)}
_METRIC: Final[Schema] = {1: ("timestamp", TIMESTAMP), 2: ("id", STRING), 3: ("data", ANY)}

SANDBOX_METHODS: Final[dict[str, tuple[Schema, Schema]]] = {
    "CreateSandbox": (
        {
            1: ("sandbox_id", STRING),
            2: ("bundle_path", STRING),
            3: ("rootfs", [MOUNT]),
            4: ("options", ANY),
            5: ("netns_path", STRING),
            6: ("annotations", MAP),
        },
        EMPTY,
    ),
    "StartSandbox": (_SANDBOX, {1: ("pid", UINT), 2: ("created_at", TIMESTAMP), 3: ("spec", ANY)}),
    "Platform": (_SANDBOX, {1: ("platform", _PLATFORM)}),
    "StopSandbox": ({1: ("sandbox_id", STRING), 2: ("timeout_secs", UINT)}, EMPTY),
    "WaitSandbox": (_SANDBOX, _EXIT),
    "SandboxStatus": (
        {1: ("sandbox_id", STRING), 2: ("verbose", BOOL)},
        {
            1: ("sandbox_id", STRING),
            2: ("pid", UINT),
            3: ("state", STRING),
            4: ("info", MAP),
            5: ("created_at", TIMESTAMP),
            6: ("exited_at", TIMESTAMP),
            7: ("extra", ANY),
        },
    ),
    "PingSandbox": (_SANDBOX, EMPTY),
    "ShutdownSandbox": (_SANDBOX, EMPTY),
    "SandboxMetrics": (_SANDBOX, {1: ("metrics", _METRIC)}),
}
"""The Sandbox service: request and response of each method."""

ENVELOPE: Final[Schema] = {
    1: ("timestamp", TIMESTAMP),
    2: ("namespace", STRING),
    3: ("topic", STRING),
    4: ("event", ANY),
}
FORWARD: Final[Schema] = {1: ("envelope", ENVELOPE)}
_IO: Final[Schema] = {1: ("stdin", STRING), 2: ("stdout", STRING), 3: ("stderr", STRING), 4: ("terminal", BOOL)}
_CONTAINER: Final[Schema] = {1: ("container_id", STRING)}

EVENTS: Final[dict[str, tuple[str, Schema]]] = {
    "/tasks/create": (
        "TaskCreate",
        {
            1: ("container_id", STRING),
            2: ("bundle", STRING),
            3: ("rootfs", [MOUNT]),
            4: ("io", _IO),
            5: ("checkpoint", STRING),
            6: ("pid", UINT),
        },
    ),
    "/tasks/start": ("TaskStart", {1: ("container_id", STRING), 2: ("pid", UINT)}),
    "/tasks/exit": (
        "TaskExit",
        {
            1: ("container_id", STRING),
            2: ("id", STRING),
            3: ("pid", UINT),
            4: ("exit_status", UINT),
            5: ("exited_at", TIMESTAMP),
        },
    ),
    "/tasks/delete": (
        "TaskDelete",
        {
            1: ("container_id", STRING),
            2: ("pid", UINT),
            3: ("exit_status", UINT),
            4: ("exited_at", TIMESTAMP),
            5: ("id", STRING),
        },
    ),
    "/tasks/oom": ("TaskOOM", _CONTAINER),
    "/tasks/exec-added": ("TaskExecAdded", {1: ("container_id", STRING), 2: ("exec_id", STRING)}),
    "/tasks/exec-started": (
        "TaskExecStarted",
        {1: ("container_id", STRING), 2: ("exec_id", STRING), 3: ("pid", UINT)},
    ),
    "/tasks/paused": ("TaskPaused", _CONTAINER),
    "/tasks/resumed": ("TaskResumed", _CONTAINER),
    "/tasks/checkpointed": ("TaskCheckpointed", {1: ("container_id", STRING), 2: ("checkpoint", STRING)}),
}
"""Topic -> message in containerd.events."""

OPTIONS: Final[Schema] = {
    1: ("no_pivot_root", BOOL),
    2: ("no_new_keyring", BOOL),
    3: ("shim_cgroup", STRING),
    4: ("io_uid", UINT),
    5: ("io_gid", UINT),
    6: ("binary_name", STRING),
    7: ("root", STRING),
    9: ("systemd_cgroup", BOOL),
    10: ("criu_image_path", STRING),
    11: ("criu_work_path", STRING),
}
CHECKPOINT_OPTIONS: Final[Schema] = {
    1: ("exit", BOOL),
    2: ("open_tcp", BOOL),
    3: ("external_unix_sockets", BOOL),
    4: ("terminal", BOOL),
    5: ("file_locks", BOOL),
    6: ("empty_namespaces", [STRING]),
    7: ("cgroups_mode", STRING),
    8: ("image_path", STRING),
    9: ("work_path", STRING),
}
RUNTIME_VERSION: Final[Schema] = {1: ("version", STRING), 2: ("revision", STRING)}
RUNTIME_INFO: Final[Schema] = {
    1: ("name", STRING),
    2: ("version", RUNTIME_VERSION),
    3: ("options", ANY),
    4: ("features", ANY),
    5: ("annotations", MAP),
}


def timestamp(nanoseconds: int) -> dict[str, int] | None:
    """None for 0: no time."""
    return {"seconds": nanoseconds // 10**9, "nanos": nanoseconds % 10**9} if nanoseconds else None
