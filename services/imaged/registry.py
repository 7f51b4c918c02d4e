"""One repository of one registry, spoken to by HTTP: hosts in turn, authorization, redirects, retries, and errors.

Every way in which a registry says no becomes one error with one sentence that names registry and repository.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from carina.errors import (
    CarinaError,
    DataLoss,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from carina.reference import Reference
from imaged.auth import Authorizer
from imaged.hosts import Host

MAX_REDIRECTS: Final = 5
Body = Callable[[], bytes | AsyncIterable[bytes]]
"""Makes the body of a request, once more for each time that it is sent."""
_TRANSIENT: Final = frozenset((408, 425, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how patiently something transient is tried again."""

    attempts: int = 5
    first: float = 0.2
    """Seconds before the second attempt; doubled for each further one."""
    longest: float = 10.0
    """Seconds that a wait may last, also where the registry asks for more."""

    def pause(self, attempt: int, asked: float = 0.0) -> float:
        """Seconds to wait after failed attempt number `attempt`, from 1."""
        backoff = self.first * float(2 ** (attempt - 1))
        return min(self.longest, max(asked, backoff * random.uniform(0.5, 1.0)))  # noqa: S311 -- jitter, not a secret


class Transient(Unavailable):
    """A failure that may not occur again. `wait` is what the registry asked for, in seconds."""

    wait: float = 0.0
    exhausted: bool = False
    """The registry limits the rate of requests."""

    def final(self, attempts: int) -> CarinaError:
        """The error for the caller when no attempt is left."""
        text = f"{self} ({attempts} attempts)" if attempts > 1 else str(self)
        return ResourceExhausted(text) if self.exhausted else Unavailable(text)


class TooLarge(Unavailable):
    """The registry, or what is before it, takes no request of that size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What is needed to talk about one repository."""

    reference: Reference
    hosts: tuple[Host, ...]
    session: aiohttp.ClientSession
    authorizer: Authorizer
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent to the registry's hosts, never to where they redirect."""
    retry: Retry = Retry()
    actions: str = "pull"
    """What tokens are asked for: `pull`, or `pull,push`."""

    @property
    def scope(self) -> str:
        return f"repository:{self.reference.repository}:{self.actions}"

    def able(self, capability: str) -> list[Host]:
        """The hosts to ask in turn. Raises NotFound where there is none."""
        found = [host for host in self.hosts if capability in host.capabilities]
        if not found:
            raise NotFound(f"registry {self.reference.domain}: no host is configured that can {capability}")
        return found

    def url(self, host: Host, kind: str, name: str) -> str:
        return f"{host.base}/{self.reference.repository}/{kind}/{name}"

    @contextlib.asynccontextmanager
    async def request(
        self,
        host: Host,
        url: str,
        *,
        what: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        also: str = "",
        wait: float = 0.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request that succeeded, redirects and challenges seen to; `what` names the object in errors.

        `also` is a further scope that the request needs a token for; `wait` is how many seconds the answer may
        take where that is more than usual.

        Raises:
            Transient: another attempt may succeed.
            NotFound, Unauthenticated, PermissionDenied, Unavailable: what the registry says.
        """
        scope = f"{self.scope} {also}".strip()
        sending = _Sending(method=method, headers=headers or {}, body=body, wait=wait)
        for _ in range(3):
            sent = self.authorizer.header(host, scope)
            async with self._follow(host, url, sending, authorization=sent) as response:
                if response.status != 401 or not _same_origin(str(response.url), host):
                    raise_for_status(response, f"registry {host.authority}", self.reference, what)
                    yield response
                    return
                challenges = response.headers.getall("WWW-Authenticate", [])
            if not challenges:
                break
            await self._authorize(host, scope, challenges, sent)
        raise Unauthenticated(f"registry {host.authority} keeps refusing repository {self.reference.repository} (401)")

    async def _authorize(self, host: Host, scope: str, challenges: list[str], sent: str | None) -> None:
        try:
            await self.authorizer.answer(host, scope, challenges, refused=sent)
        except Unauthenticated as error:
            raise Unauthenticated(f"repository {self.reference.repository}: {error}") from error

    @contextlib.asynccontextmanager
    async def _follow(
        self, host: Host, url: str, sending: "_Sending", *, authorization: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MAX_REDIRECTS + 1):
                own = _same_origin(url, host)
                sent = {**(host.headers if own else {}), **(self.headers if own else {}), **sending.headers}
                if own and authorization:
                    sent["Authorization"] = authorization
                response = await stack.enter_async_context(self._one(url, replace(sending, headers=sent), host))
                location = response.headers.get("Location", "")
                if response.status not in (301, 302, 303, 307, 308) or not location:
                    yield response
                    return
                await stack.aclose()
                url = self.target(url, location, host)
            raise Unavailable(f"registry {host.authority} redirects more than {MAX_REDIRECTS} times")

    def target(self, url: str, location: str, host: Host) -> str:
        """Where an answer to a request of `url` sends one. Raises PermissionDenied for what is not to be followed."""
        target = urljoin(url, location)
        parts = urlsplit(target)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise PermissionDenied(f"registry {host.authority} redirects to {target[:200]!r}")
        if parts.scheme == "http" and url.startswith("https:"):
            raise PermissionDenied(f"registry {host.authority} redirects from https to http at {parts.netloc}")
        return target

    @contextlib.asynccontextmanager
    async def _one(self, url: str, sending: "_Sending", host: Host) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = self.session.timeout
        if sending.wait:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout.sock_connect, sock_read=sending.wait)
        try:
            response = await self.session.request(
                sending.method,
                URL(url, encoded=True),
                headers={"Accept-Encoding": "identity", **sending.headers},
                data=sending.body() if sending.body else None,
                allow_redirects=False,
                ssl=host.tls,
                timeout=timeout,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Transient(f"registry {host.authority} can't be reached: {_reason(error)}") from error
        try:
            yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sending:
    method: str
    headers: Mapping[str, str]
    body: Body | None = None
    wait: float = 0.0


def raise_for_status(response: aiohttp.ClientResponse, registry: str, reference: Reference, what: str) -> None:
    """Turn the statuses by which registries refuse into errors."""
    status, repository = response.status, reference.repository
    if status < 300:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise Unavailable(f"{registry} sends {what} of repository {repository} with encoding {encoding[:40]!r}")
        return
    if status == 404:
        raise NotFound(f"{registry} has no {what} in repository {repository}")
    if status == 416:
        raise DataLoss(f"{registry} has fewer bytes of {what} in repository {repository} than its manifest says")
    if status in (401, 403):
        raise PermissionDenied(f"{registry} refuses access to {what} of repository {repository} ({status})")
    if status == 429 or status in _TRANSIENT:
        limited = "limits the rate of requests" if status == 429 else "fails"
        error = Transient(f"{registry} {limited}: {what} of repository {repository} ({status})")
        error.wait, error.exhausted = _retry_after(response), status == 429
        raise error
    if status == 413:
        raise TooLarge(f"{registry} refuses {what} of repository {repository} as too large ({status})")
    raise Unavailable(f"{registry} answers {status} for {what} of repository {repository}")


def _retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def _same_origin(url: str, host: Host) -> bool:
    parts, own = urlsplit(url), urlsplit(host.base)
    return (parts.scheme, parts.hostname, parts.port) == (own.scheme, own.hostname, own.port)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    return str(error) or type(error).__name__


async def pause(retry: Retry, attempt: int, error: Transient) -> None:
    """Wait before the next attempt, or raise the error where none is left."""
    if attempt >= retry.attempts:
        raise error.final(attempt) from error
    await asyncio.sleep(retry.pause(attempt, error.wait))
