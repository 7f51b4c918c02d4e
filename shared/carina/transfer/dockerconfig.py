"""Credentials as Docker keeps them: in config.json, or with helpers, which are programs of their own.

{"auths": {"registry.test": {"auth": "base64 of NAME:PASSWORD"}},    or "identitytoken", "registrytoken"
 "credHelpers": {"other.test": "pass"},                              docker-credential-pass, for one registry
 "credsStore": "secretservice"}                                      the same for all others
"""

import asyncio
import base64
import binascii
import contextlib
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec

from carina.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from carina.transfer import Credentials

MAX_SIZE: Final = 4 << 20
HELPER_SECONDS: Final = 30.0
HUB: Final = "https://index.docker.io/v1/"
"""What Docker calls its own registry."""
_HUB_HOSTS: Final = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io"))
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REFRESH: Final = "<token>"
"""The name under which helpers give a refresh token."""


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, _Auth] | None = None
    creds_store: str = ""
    cred_helpers: dict[str, str] | None = None


class _Answer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DockerConfig:
    """Usable as a `CredentialSource`: `Access(credentials=DockerConfig.read(path).credentials)`."""

    path: Path
    auths: Mapping[str, Credentials] = field(default_factory=dict)
    """By host."""
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    seconds: float = HELPER_SECONDS

    @classmethod
    def default_path(cls, environment: Mapping[str, str]) -> Path:
        directory = environment.get("DOCKER_CONFIG", "")
        return (Path(directory) if directory else Path(environment.get("HOME", "/")) / ".docker") / "config.json"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Empty where there is no such file.

        Raises:
            InvalidArgument: it can't be read; what it holds is not shown.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_SIZE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return cls(path=path)
        except OSError as error:
            raise InvalidArgument(f"Docker's configuration {path} can't be read: {error.strerror}") from error
        try:
            if len(data) > MAX_SIZE:
                raise ValueError
            found = msgspec.json.decode(data, type=_File)
            auths = {_host(name): _credentials(one) for name, one in (found.auths or {}).items()}
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"Docker's configuration {path} is not valid") from error
        helpers = {_host(name): helper for name, helper in (found.cred_helpers or {}).items()}
        return cls(path=path, auths=auths, helpers=helpers, store=found.creds_store)

    def __bool__(self) -> bool:
        return bool(self.auths or self.helpers or self.store)

    async def credentials(self, host: str, challenges: list[str]) -> Credentials | None:
        """What there is for a host; None: nothing.

        Raises:
            FailedPrecondition: the helper can't be started, fails, or answers with something else.
            DeadlineExceeded: the helper takes too long.
        """
        key = _host(host)
        known = self.auths.get(key)
        if helper := self.helpers.get(key) or self.store:
            server = HUB if key == _host(HUB) else host
            return await self._ask(helper, server) or known
        return known if known and (known.username or known.secret or known.header) else None

    async def _ask(self, helper: str, server: str) -> Credentials | None:
        if not _HELPER.fullmatch(helper):
            raise FailedPrecondition(f"Docker's configuration {self.path} names {helper[:60]!r}, which is no helper")
        program = f"docker-credential-{helper}"
        status, output = await self._run(program, server)
        if status != 0:
            if b"credentials not found" in output.lower():
                return None
            raise FailedPrecondition(f"{program} fails for {server} (exit status {status})")
        try:
            answer = msgspec.json.decode(output, type=_Answer)
        except msgspec.MsgspecError as error:
            raise FailedPrecondition(f"{program} answers with something else than credentials for {server}") from error
        if answer.username == _REFRESH:
            return Credentials(secret=answer.secret)
        return Credentials(username=answer.username, secret=answer.secret) if answer.secret else None

    async def _run(self, program: str, server: str) -> tuple[int, bytes]:
        try:
            process = await asyncio.create_subprocess_exec(
                *(program, "get"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                limit=MAX_SIZE,
            )
        except OSError as error:
            raise FailedPrecondition(f"{program} can't be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(self.seconds):
                output, _ = await process.communicate(f"{server}\n".encode())
        except TimeoutError as error:
            raise DeadlineExceeded(f"{program} gives no credentials for {server} within {self.seconds:g} s") from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return process.returncode or 0, output


def _host(name: str) -> str:
    """The host of a key of the file, which may be a URL."""
    host = name.partition("://")[2] or name
    host = host.partition("/")[0].lower()
    return "index.docker.io" if host in _HUB_HOSTS else host


def _credentials(one: _Auth) -> Credentials:
    """Raises ValueError for what is not base64 of a name and a password."""
    if one.registrytoken:
        return Credentials(header=f"Bearer {one.registrytoken}")
    if one.identitytoken:
        return Credentials(secret=one.identitytoken)
    username, password = one.username, one.password
    if one.auth:
        try:
            text = base64.b64decode(one.auth, validate=True).decode()
        except binascii.Error as error:
            raise ValueError("auth is not base64") from error
        username, _, password = text.partition(":")
    return Credentials(username=username, secret=password.rstrip("\0"))
