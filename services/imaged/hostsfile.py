"""hosts.toml: the hosts of one registry, as containerd reads them.

    server = "https://registry-1.docker.io"        # asked last; where absent, the registry itself
    [host."http://mirror.test:5000"]               # asked first, in the order of the file
      capabilities = ["pull", "resolve", "push"]   # all of them where absent
      ca = "ca.crt"                                # or a list; beside hosts.toml unless absolute
      client = [["client.cert", "client.key"]]     # or files with both, or one such file
      skip_verify = false
      override_path = false                        # true: the URL's path is used as it is, without /v2
      dial_timeout = "5s"
      [host."http://mirror.test:5000".header]
        X-Custom = "value"                         # or a list

The keys of a host may also stand at the top: they are then those of the server.
Keys that are not known are reported in the log and have no effect.
"""

import logging
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from carina.errors import InvalidArgument
from imaged.certificates import Certificates, Pair
from imaged.hosts import CAPABILITIES, DOCKER_HUB, Host, is_url, own

NAME: Final = "hosts.toml"
MAX_SIZE: Final = 1 << 20
_KEYS: Final = frozenset(("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"))
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_log = logging.getLogger(__name__)


def read(path: Path) -> str:
    """The text of a file; empty where there is none. Raises InvalidArgument where it can't be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InvalidArgument(f"registry configuration {path} can't be read: {error.strerror}") from error
    if len(data) > MAX_SIZE:
        raise InvalidArgument(f"registry configuration {path} is larger than {MAX_SIZE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"registry configuration {path} can't be read: it is not UTF-8") from error


def parse(text: str, *, path: Path, registry: str, scheme: str = "") -> list[Host]:
    """The hosts of `registry`, the server last.

    Raises:
        InvalidArgument: something can't be; path, key and line are named.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidArgument(f"registry configuration {path} can't be read: {error}") from error
    file = _File(path=path, text=text)
    entries = table.get("host", {})
    if not isinstance(entries, dict):
        file.fail("", "host", "must be a table")
    found = []
    for url, entry in entries.items():
        if not isinstance(entry, dict):
            file.fail(url, "host", "must be a table")
        found.append(_host(_Entry(file=file, url=url, table=entry), registry))
    server = table.get("server", "")
    if not isinstance(server, str):
        file.fail("", "server", "must be a text")
    settings = _Entry(
        file=file, url=server, table={key: value for key, value in table.items() if key not in ("server", "host")}
    )
    if server:
        found.append(_host(settings, registry))
    else:
        itself = own(registry, scheme, settings.certificates())
        found.append(replace(itself, headers=settings.headers(), dial_timeout=settings.dial_timeout()))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: Path
    text: str

    def fail(self, url: str, key: str, problem: str) -> NoReturn:
        line = self._line(url, key)
        shown = repr(url.rpartition("@")[2])  # not what may be a password
        where = f" of {shown}" if url and key else ""
        what = key or shown
        at = f" (line {line})" if line else ""
        raise InvalidArgument(f"registry configuration {self.path}: {what}{where} {problem}{at}")

    def _line(self, url: str, key: str) -> int:
        """Where a key of a host is, as far as the text shows it; 0: it does not."""
        lines = self.text.splitlines()
        start = next((at for at, line in enumerate(lines) if url and url in line), 0)
        wanted = re.compile(rf"""\s*(\[.*)?["']?{re.escape(key)}["']?\s*[=\]]""") if key else None
        for at in range(start, len(lines)):
            if wanted is None or wanted.match(lines[at]):
                return at + 1
        return start + 1 if url else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What the file says of one host."""

    file: _File
    url: str
    table: Mapping[str, Any]

    def fail(self, key: str, problem: str) -> NoReturn:
        self.file.fail(self.url, key, problem)

    def warn_of_others(self) -> None:
        for key in sorted(self.table.keys() - _KEYS):
            _log.warning("registry configuration %s: %s of %s has no effect", self.file.path, key, self.url or "server")

    def flag(self, key: str) -> bool:
        value = self.table.get(key, False)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return value

    def capabilities(self) -> frozenset[str]:
        given = self.table.get("capabilities", [])
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            self.fail("capabilities", "must be a list of pull, resolve and push")
        found = frozenset(one.lower() for one in given)
        if unknown := found - CAPABILITIES:
            self.fail("capabilities", f"has {min(unknown)[:40]!r}: expected pull, resolve and push")
        return found or CAPABILITIES

    def certificates(self) -> Certificates:
        authorities = self.table.get("ca", [])
        authorities = [authorities] if isinstance(authorities, str) else authorities
        if not isinstance(authorities, list) or not all(isinstance(one, str) for one in authorities):
            self.fail("ca", "must be a file or a list of files")
        clients = self.table.get("client", [])
        clients = [clients] if isinstance(clients, str) else clients
        if not isinstance(clients, list):
            self.fail("client", "must be a file, or a list of files or of pairs of files")
        return Certificates(
            authorities=tuple(self._path(one) for one in authorities),
            pairs=tuple(self._pair(one) for one in clients),
            verify=not self.flag("skip_verify"),
        )

    def _pair(self, client: object) -> Pair:
        if isinstance(client, str):
            return self._path(client), self._path(client)
        if isinstance(client, list) and len(client) == 2 and all(isinstance(one, str) for one in client):
            return self._path(client[0]), self._path(client[1])
        return self.fail("client", "must be a file, or a list of files or of pairs of files")

    def _path(self, name: str) -> Path:
        if not name or "\0" in name:
            self.fail("", "names a file that can't be")
        return self.file.path.parent / name

    def headers(self) -> dict[str, str]:
        table = self.table.get("header", {})
        if not isinstance(table, dict):
            self.fail("header", "must be a table")
        return {self._header_name(name): self._header(name, value) for name, value in table.items()}

    def _header_name(self, name: str) -> str:
        if not _HEADER_NAME.fullmatch(name):
            self.fail("header", f"has {name[:60]!r}, which is no name of a header")
        return name

    def _header(self, name: str, value: object) -> str:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            self.fail(name, "must be a text or a list of texts")
        joined = ", ".join(values)
        if any((character < " " and character != "\t") or character == "\x7f" for character in joined):
            self.fail(name, "has characters that a header can't have")
        return joined

    def dial_timeout(self) -> float:
        given = self.table.get("dial_timeout", "")
        if given == "":
            return 0.0
        parts = _DURATION.findall(given) if isinstance(given, str) else []
        if not parts or "".join(number + unit for number, unit in parts) != given:
            self.fail("dial_timeout", f'is {str(given)[:40]!r}: expected a duration such as "5s"')
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if not 0 < seconds <= 3600:
            self.fail("dial_timeout", "must be longer than 0 and at most an hour")
        return seconds


def _host(entry: _Entry, registry: str) -> Host:
    entry.warn_of_others()
    url = entry.url
    full = url if "://" in url else f"https://{url}"
    parts = urlsplit(full) if is_url(full) else None
    if parts is None or parts.query or parts.fragment:
        entry.fail("", "is not the URL of a host")
    path = parts.path.rstrip("/")
    if not entry.flag("override_path") and not path.endswith("/v2"):
        path += "/v2"
    stands_for = "registry-1.docker.io" if registry == DOCKER_HUB else registry
    return Host(
        scheme=parts.scheme,
        authority=parts.netloc,
        path=path,
        capabilities=entry.capabilities(),
        headers=entry.headers(),
        dial_timeout=entry.dial_timeout(),
        mirrors="" if parts.netloc in (registry, stands_for) else registry,
    ).with_certificates(entry.certificates())
