"""Answers to a registry's challenge: Basic, or a bearer token fetched from the realm that the challenge names.

Credentials go to the host that they are for and to its realm, and never in the clear to a realm
where the registry itself is spoken to by https.
"""

import base64
import time
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from carina.aio.locks import KeyedLock
from carina.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from carina.transfer import Credentials, CredentialSource
from imaged.challenges import merged, parse_challenges
from imaged.failures import FAILURES, unreachable
from imaged.hosts import Host, is_url
from imaged.patience import TRANSIENT, refused
from imaged.proxies import Proxies

MAX_TOKEN_SIZE: Final = 1 << 20
_TOKEN_SECONDS: Final = 60.0
"""How long a token lasts whose answer does not say (distribution's token specification)."""


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class Authorizer:
    """The authorization of one transfer, with the tokens that it got."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        credentials: CredentialSource | None = None,
        *,
        proxies: Proxies | None = None,
    ) -> None:
        self._session = session
        self._source = credentials
        self._proxies = proxies or Proxies()
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
            Transient: the realm fails, and may not another time.
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
        where = _realm(realm, host)
        whom = f"realm {where} of registry {host.authority}"
        scopes = merged([*parameters.get("scope", "").split(), *scope.split()])
        try:
            async with self._request(host, realm, parameters.get("service", ""), scopes, credentials) as response:
                data = await response.content.read(MAX_TOKEN_SIZE)
                status, headers = response.status, response.headers
        except FAILURES as error:
            raise unreachable(error, whom) from error
        if status in (401, 403):
            hint = "check the credentials" if credentials else "credentials may help"
            raise PermissionDenied(f"{whom} refuses a token ({status}); {hint} for {', '.join(scopes)}")
        if status in TRANSIENT:
            raise refused(f"{whom} gives no token ({status})", status, headers)
        if status != 200:
            raise Unavailable(f"{whom} answers {status}")
        return _read_token(data, where)

    def _request(
        self, host: Host, realm: str, service: str, scopes: list[str], credentials: Credentials | None
    ) -> "aiohttp.client._RequestContextManager":
        own = urlsplit(realm).hostname == urlsplit(host.base).hostname
        proxy = self._proxies.between(realm)
        query = [("service", service)] if service else []
        if credentials and credentials.secret and not credentials.username:
            form = [*query, ("scope", " ".join(scopes)), ("client_id", "carina")]
            form += [("grant_type", "refresh_token"), ("refresh_token", credentials.secret)]
            method, data, query, headers = "POST", aiohttp.FormData(form), [], {}
        else:
            method, data = "GET", None
            query += [("scope", one) for one in scopes]
            headers = {"Authorization": _basic(credentials)} if credentials and credentials.username else {}
        return self._session.request(
            method,
            realm,
            params=query,
            data=data,
            headers=headers,
            allow_redirects=False,
            ssl=host.tls if own else host.tls_elsewhere,
            proxy=proxy,
        )


def _realm(realm: str, host: Host) -> str:
    """The host of a realm that one may ask."""
    if not is_url(realm):
        raise InvalidArgument(f"registry {host.authority} names {realm[:200]!r} as realm, which is no URL")
    where = urlsplit(realm)
    if where.scheme == "http" and host.scheme == "https":
        raise PermissionDenied(f"registry {host.authority} wants a token fetched in the clear from {where.netloc}")
    return where.netloc


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
