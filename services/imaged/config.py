"""imaged's settings: the section `[images]` of the configuration.

[images]
config_path = "/etc/carina/certs.d"       # REGISTRY/hosts.toml
max_concurrent_downloads = 4              # connections to a registry that one pull keeps busy
concurrent_layer_fetch_buffer = 8388608   # bytes of one range of a large layer; 0: one connection for each layer
minimum_rate = 1024                       # bytes a second, over stall_timeout; less is as no byte at all
max_concurrent_uploaded_layers = 3        # blobs that one push sends at a time
default_snapshotter = "overlayfs"
attempts = 5                              # how often something transient is tried
connect_timeout = 15                      # seconds
stall_timeout = 60                        # seconds without a byte from a registry
sync_fs = true                            # flush a layer to disk before its snapshot is committed
max_layer_bytes = 1099511627776           # of an unpacked layer; 0: no limit, as for the following
max_layer_entries = 20000000
max_layer_ratio = 500                     # unpacked bytes for each compressed one, of layers from 8 GiB up
max_layer_memory = 1073741824             # of the process that applies it

[images.diff]
default = []                              # differs in the order of asking: "walking" and names of proxy plugins

[images.verifier]                         # containerd's: programs that say whether an image may be pulled
bin_dir = "/opt/carina/image-verifier/bin"
max_verifiers = 10                        # -1: no limit
per_verifier_timeout = "10s"

[images.stream_processors.ID]             # containerd's: a program that makes layers of layers
accepts = ["MEDIA TYPE"]
returns = "MEDIA TYPE"
path = "PROGRAM"
args = []
env = []
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from carina.config import Config as Whole
from carina.errors import InvalidArgument
from carina.layer import Limits
from imaged.processors import StreamProcessor, stream_processors
from imaged.verifiers import Verifiers, verifiers

DEFAULT_CONFIG_PATH: Final = Path("/etc/carina/certs.d")
_LIMITS: Final = {
    "max_layer_bytes": "bytes",
    "max_layer_entries": "entries",
    "max_layer_ratio": "ratio",
    "max_layer_memory": "memory",
}
_KEYS: Final = frozenset(
    (
        "config_path",
        "max_concurrent_downloads",
        "concurrent_layer_fetch_buffer",
        "minimum_rate",
        "max_concurrent_uploaded_layers",
        "default_snapshotter",
        "attempts",
        "connect_timeout",
        "stall_timeout",
        "diff",
        "stream_processors",
        "sync_fs",
        "verifier",
        *_LIMITS,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path
    """Owned by imaged: scratch space of the differ."""
    address: str
    metadata: str
    """Address of metadatad."""
    differs: tuple[str, ...] = ()
    """Names of the differs to ask in turn; none: our own and then every one that is plugged in."""
    config_path: Path = DEFAULT_CONFIG_PATH
    max_concurrent_downloads: int = 4
    concurrent_layer_fetch_buffer: int = 8 << 20
    minimum_rate: float = 1024.0
    max_concurrent_uploaded_layers: int = 3
    default_snapshotter: str = "overlayfs"
    attempts: int = 5
    connect_timeout: float = 15.0
    stall_timeout: float = 60.0
    sync_fs: bool = True
    limits: Limits = field(default_factory=Limits)
    stream_processors: tuple[StreamProcessor, ...] = ()
    verifiers: Verifiers = field(default_factory=Verifiers)

    @classmethod
    def of(cls, whole: Whole) -> Self:
        """Raises InvalidArgument, naming the key."""
        table = whole.section("images")
        for key in table:
            if key not in _KEYS:
                raise InvalidArgument(f"images.{key} is not a setting: expected one of {', '.join(sorted(_KEYS))}")
        return cls(
            root=whole.root / "imaged",
            address=whole.services["images"],
            metadata=whole.services["metadata"],
            differs=_differs(table.get("diff", {})),
            config_path=Path(str(table.get("config_path", DEFAULT_CONFIG_PATH))),
            max_concurrent_downloads=int(_number(table, "max_concurrent_downloads", 4, least=1, most=64)),
            concurrent_layer_fetch_buffer=_piece(table),
            minimum_rate=_number(table, "minimum_rate", 1024.0, least=0, most=1 << 40),
            max_concurrent_uploaded_layers=int(_number(table, "max_concurrent_uploaded_layers", 3, least=1, most=64)),
            default_snapshotter=str(table.get("default_snapshotter", "overlayfs")),
            attempts=int(_number(table, "attempts", 5, least=1, most=100)),
            connect_timeout=_number(table, "connect_timeout", 15.0, least=0.1, most=3600),
            stall_timeout=_number(table, "stall_timeout", 60.0, least=0.1, most=3600),
            sync_fs=_flag(table, "sync_fs", default=True),
            limits=_limits(table),
            stream_processors=stream_processors(table.get("stream_processors", {})),
            verifiers=verifiers(table.get("verifier", {})),
        )


def read(whole: Whole) -> Config:
    """Raises InvalidArgument, naming the key."""
    return Config.of(whole)


def _differs(table: Any) -> tuple[str, ...]:
    if not isinstance(table, dict):
        raise InvalidArgument("images.diff must be a table")
    for key in table:
        if key != "default":
            raise InvalidArgument(f"images.diff.{key} is not a setting: expected one of default")
    names = table.get("default", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InvalidArgument("images.diff.default must be a list of names of differs")
    if len(set(names)) < len(names):
        raise InvalidArgument("images.diff.default names a differ twice")
    return tuple(names)


def _limits(table: Mapping[str, Any]) -> Limits:
    default = Limits()
    found = {
        field: int(_number(table, key, getattr(default, field), least=0, most=1 << 62))
        for key, field in _LIMITS.items()
    }
    return default._replace(**found)


def _piece(table: Mapping[str, Any]) -> int:
    size = int(_number(table, "concurrent_layer_fetch_buffer", 8 << 20, least=0, most=1 << 30))
    # containerd takes anything below for a wish to have one connection.
    return size if size >= 512 else 0


def _flag(table: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"images.{key} must be true or false")
    return value


def _number(table: Mapping[str, Any], key: str, default: float, *, least: float, most: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidArgument(f"images.{key} must be a number from {least} to {most}")
    return value
