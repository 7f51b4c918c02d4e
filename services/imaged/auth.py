"""Answers to a registry's challenge: Basic, or a bearer token fetched from the realm that the challenge names.

Credentials go to the host that they are for and to its realm, and never in the clear to a realm
where the registry itself is spoken to by https.
"""

import base64
import re
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from carina.aio.locks import KeyedLock
from carina.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from carina.transfer import Credentials, CredentialSource
from imaged.hosts import Host

MAX_TOKEN_SIZE: Final = 1 << 20
_TOKEN_SECONDS: Final = 60.0
"""How long a token lasts whose answer does not say (distribution's token specification)."""
_CHALLENGE: Final = re.compile(r'([a-zA-Z][\w.-]*)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    scheme: str
    parameters: dict[str, str]


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """Read WWW-Authenticate headers (RFC 9110, section 11.6.1), one challenge each."""
    challenges = []
    for header in headers:
        scheme, _, rest = header.strip().partition(" ")
        parameters = {name.lower(): quoted or bare for name, quoted, bare in _CHALLENGE.findall(rest[:8192])}
        challenges.append(Challenge(scheme=scheme.lower(), parameters=parameters))
    return challenges


class Authorizer:
    """The authorization of one transfer, with the tokens that it got."""

    def __init__(self, session: aiohttp.ClientSession, credentials: CredentialSource | None = None) -> None:
        self._session = session
        self._source = credentials
        self._headers: dict[tuple[str, str], tuple[str, float]] = {}
        self._locks = KeyedLock()

    def header(self, host: Host, scope: str) -> str | None:
        """The Authorization header for a request, as far as one is known."""
        header, expires = self._headers.get((host.base, scope), ("", 0.0))
        return header if header and time.monotonic() < expires else None

    async def answer(self, host: Host, scope: str, challenges: list[str], *, refused: str | None) -> None:
        """Get what the host asks for; `header` returns it from then on. `refused` is the header that was not accepted.

        Raises:
            Unauthenticated: there is nothing (more) to answer the challenge with.
            PermissionDenied: the realm refuses.
            Unavailable: the realm can't be reached.
        """
        async with self._locks.hold(f"{host.base} {scope}", seconds=60):
            known = self.header(host, scope)
            if known is not None and known != refused:
                return  # somebody else asked meanwhile
            self._headers.pop((host.base, scope), None)
            credentials = await self._source(host.authority, challenges) if self._source else None
            header, seconds = await self._answer(host, scope, challenges, credentials)
            if header == refused:
                raise Unauthenticated(f"registry {host.authority} does not accept the credentials")
            self._headers[host.base, scope] = (header, time.monotonic() + seconds)

    async def _answer(
        self, host: Host, scope: str, challenges: list[str], credentials: Credentials | None
    ) -> tuple[str, float]:
        if credentials and credentials.header:
            return credentials.header, 3600.0
        parsed = parse_challenges(challenges)
        for challenge in parsed:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                return await self._token(host, scope, challenge.parameters, credentials)
        for challenge in parsed:
            if challenge.scheme == "basic" and credentials and credentials.username:
                return _basic(credentials), 3600.0
        raise Unauthenticated(f"registry {host.authority} asks for credentials, and there are none for it")

    async def _token(
        self, host: Host, scope: str, parameters: dict[str, str], credentials: Credentials | None
    ) -> tuple[str, float]:
        realm = parameters["realm"]
        where = urlsplit(realm)
        if where.scheme not in ("http", "https") or not where.netloc or "@" in where.netloc:
            raise InvalidArgument(f"registry {host.authority} names {realm[:200]!r} as realm, which is no URL")
        if where.scheme == "http" and host.scheme == "https":
            raise PermissionDenied(f"registry {host.authority} wants a token fetched in the clear from {where.netloc}")
        query = {"scope": parameters.get("scope") or scope}
        if "service" in parameters:
            query["service"] = parameters["service"]
        try:
            if credentials and credentials.secret and not credentials.username:
                query |= {"grant_type": "refresh_token", "refresh_token": credentials.secret, "client_id": "carina"}
                request = self._session.post(realm, data=query, allow_redirects=False)
            else:
                headers = {"Authorization": _basic(credentials)} if credentials and credentials.username else {}
                request = self._session.get(realm, params=query, headers=headers, allow_redirects=False)
            async with request as response:
                data = await response.content.read(MAX_TOKEN_SIZE)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"realm {where.netloc} of registry {host.authority} can't be reached: {error}") from error
        if status in (401, 403):
            raise PermissionDenied(f"realm {where.netloc} of registry {host.authority} refuses a token ({status})")
        if status != 200:
            raise Unavailable(f"realm {where.netloc} of registry {host.authority} answers {status}")
        return _read_token(data, where.netloc)


def _read_token(data: bytes, realm: str) -> tuple[str, float]:
    try:
        token = msgspec.json.decode(data, type=_Token)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"realm {realm} answers something else than a token") from error
    text = token.token or token.access_token
    if not text or any(ord(character) < 33 or ord(character) > 126 for character in text):
        raise Unavailable(f"realm {realm} answers without a token")
    seconds = token.expires_in if token.expires_in and token.expires_in > 0 else _TOKEN_SECONDS
    return f"Bearer {text}", max(5.0, seconds * 0.9)


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.secret}".encode()).decode()
