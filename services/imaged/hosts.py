"""Where a registry is spoken to: its hosts in the order of trial, from `<config_path>/<registry>/hosts.toml`.

    server = "https://registry-1.docker.io"       # asked last
    [host."http://mirror.internal:5000"]          # asked first, in the order of the file
      capabilities = ["pull", "resolve"]
      skip_verify = false
      override_path = false                        # true: the URL's path replaces /v2
      [host."...".header]
        X-Custom = "value"

Without such a file a registry is spoken to by https; one on the loopback interface by http.
"""

import ipaddress
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from carina.errors import InvalidArgument

DOCKER_HUB: Final = "docker.io"
_DOCKER_HUB_HOST: Final = "registry-1.docker.io"
_CAPABILITIES: Final = frozenset(("pull", "resolve", "push"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One place to ask."""

    scheme: str
    authority: str
    """Host, and port where it is not the scheme's."""
    path: str = "/v2"
    capabilities: frozenset[str] = _CAPABILITIES
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | bool = True
    """False: whatever certificate the host shows is taken."""

    @property
    def base(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def hosts(registry: str, *, directory: Path | None = None, scheme: str = "") -> list[Host]:
    """The hosts of a registry in the order of trial. Reads files: run it in a thread.

    `scheme` is what the caller asked for (`http` or `https`), empty for the default.

    Raises:
        InvalidArgument: the scheme, or what the file says, can't be.
    """
    if scheme not in ("", "http", "https"):
        raise InvalidArgument(f"registry {registry}: scheme {scheme[:20]!r} is neither http nor https")
    authority = _DOCKER_HUB_HOST if registry == DOCKER_HUB else registry
    own = Host(scheme=scheme or ("http" if is_loopback(authority) else "https"), authority=authority)
    path = _file(registry, directory) if directory else None
    return _read(path, own) if path else [own]


def is_loopback(authority: str) -> bool:
    """Whether a host is this machine by its name alone; nothing is looked up."""
    name = urlsplit(f"//{authority}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _file(registry: str, directory: Path) -> Path | None:
    name, _, port = registry.rpartition(":")
    # containerd accepts each of these spellings of a registry with a port.
    candidates = [f"{name}_{port}_", registry, name] if name and port.isdigit() else [registry]
    for candidate in (*candidates, "_default"):
        path = directory / candidate / "hosts.toml"
        if path.is_file():
            return path
    return None


def _read(path: Path, own: Host) -> list[Host]:
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"registry configuration {path} can't be read: {error}") from error
    found = []
    entries = table.get("host", {})
    if not isinstance(entries, dict):
        raise InvalidArgument(f"registry configuration {path}: host must be a table")
    for url, entry in entries.items():
        if not isinstance(entry, dict):
            raise InvalidArgument(f"registry configuration {path}: host.{url!r} must be a table")
        found.append(_host(url, entry, path))
    server = table.get("server", "")
    settings = {key: value for key, value in table.items() if key not in ("server", "host")}
    if server:
        found.append(_host(str(server), settings, path))
    else:
        found.append(own)
    return found


def _host(url: str, entry: Mapping[str, Any], path: Path) -> Host:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise InvalidArgument(f"registry configuration {path}: {url!r} is not the URL of a host")
    capabilities = frozenset(entry.get("capabilities", _CAPABILITIES))
    if unknown := capabilities - _CAPABILITIES:
        raise InvalidArgument(f"registry configuration {path}: unknown capability {min(unknown)!r} of {url!r}")
    headers = entry.get("header", {})
    if not isinstance(headers, dict):
        raise InvalidArgument(f"registry configuration {path}: the header of {url!r} must be a table")
    prefix = parts.path.rstrip("/")
    return Host(
        scheme=parts.scheme,
        authority=parts.netloc,
        path=prefix if entry.get("override_path") is True else (prefix if prefix.endswith("/v2") else f"{prefix}/v2"),
        capabilities=capabilities,
        headers={str(key): _header(value) for key, value in headers.items()},
        tls=False if entry.get("skip_verify") is True else _tls(entry.get("ca", []), path),
    )


def _tls(ca: object, path: Path) -> ssl.SSLContext | bool:
    """The system's certificates, and the files that the configuration names besides."""
    files = [str(path.parent / str(one)) for one in (ca if isinstance(ca, list) else [ca])]
    if not files:
        return True
    context = ssl.create_default_context()
    try:
        for file in files:
            context.load_verify_locations(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(f"registry configuration {path}: certificates {file} can't be read: {error}") from error
    return context


def _header(value: object) -> str:
    return ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)
