"""One repository of one registry, spoken to by HTTP: hosts in turn, authorization, redirects, retries, and errors.

Every way in which a registry says no becomes one error with one sentence that names registry and repository.
"""

import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from carina.errors import CarinaError, DataLoss, NotFound, PermissionDenied, Unauthenticated, Unavailable
from carina.reference import Reference
from imaged.auth import Authorizer
from imaged.failures import FAILURES, MAX_BODY, stated_reason, unreachable
from imaged.hosts import Host, is_url
from imaged.patience import LIMITED, TRANSIENT, Retry, refused
from imaged.proxies import Proxies

MAX_REDIRECTS: Final = 5
Body = Callable[[], bytes | AsyncIterable[bytes]]
"""Makes the body of a request, once more for each time that it is sent."""
_log = logging.getLogger(__name__)


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
    retry: Retry = field(default_factory=Retry)
    actions: str = "pull"
    """What tokens are asked for: `pull`, or `pull,push`."""
    proxies: Proxies = field(default_factory=Proxies)
    missed: set[str] = field(default_factory=set)
    """Hosts that could not be reached: they are asked last from then on."""

    @property
    def scope(self) -> str:
        return f"repository:{self.reference.repository}:{self.actions}"

    def able(self, capability: str) -> list[Host]:
        """The hosts to ask in turn. Raises NotFound where there is none."""
        found = [host for host in self.hosts if capability in host.capabilities]
        if not found:
            raise NotFound(f"registry {self.reference.domain}: no host is configured that can {capability}")
        return sorted(found, key=lambda host: host.base in self.missed) if capability != "push" else found

    def patience(self, host: Host, hosts: Sequence[Host]) -> Retry:
        """How long to insist on one host of several: less where there is another one to ask."""
        return self.retry if host is hosts[-1] else replace(self.retry, attempts=min(2, self.retry.attempts))

    def failed(self, host: Host, hosts: Sequence[Host], error: CarinaError) -> None:
        """Take note that a host was of no use. Raises the error where it was the last one."""
        if isinstance(error, Unavailable):
            self.missed.add(host.base)
        if host is hosts[-1]:
            raise error
        _log.warning("registry %s: %s; the next host is asked", self.reference.domain, error)

    def url(self, host: Host, kind: str, name: str) -> str:
        # A mirror of several registries is told which one is meant.
        query = f"?ns={host.mirrors}" if host.mirrors and self.actions == "pull" else ""
        return f"{host.base}/{self.reference.repository}/{kind}/{name}{query}"

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
        foreign: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request that succeeded, redirects and challenges seen to; `what` names the object in errors.

        `also` is a further scope that the request needs a token for; `wait` is how many seconds the answer may
        take where that is more than usual. A host that is `foreign` is not the registry's and is told no secrets.

        Raises:
            Transient: another attempt may succeed.
            NotFound, Unauthenticated, PermissionDenied, Unavailable: what the registry says.
        """
        scope = f"{self.scope} {also}".strip()
        sending = _Sending(method=method, headers=headers or {}, body=body, wait=wait)
        for _ in range(3):
            sent = None if foreign else self.authorizer.header(host, scope)
            async with self._follow(host, url, sending, authorization=sent, own=not foreign) as response:
                if foreign or response.status != 401 or not _same_origin(str(response.url), host):
                    if response.status >= 300:
                        raise await refusal(response, f"registry {host.authority}", self.reference, what)
                    _check_encoding(response, f"registry {host.authority}", self.reference, what)
                    yield response
                    return
                challenges = response.headers.getall("WWW-Authenticate", [])
            if not challenges:
                break
            await self._authorize(host, scope, challenges, sent)
        raise Unauthenticated(
            f"registry {host.authority} keeps refusing repository {self.reference.repository} (401);"
            " check the credentials for it"
        )

    async def _authorize(self, host: Host, scope: str, challenges: list[str], sent: str | None) -> None:
        try:
            await self.authorizer.answer(host, scope, challenges, refused=sent)
        except Unauthenticated as error:
            raise Unauthenticated(f"repository {self.reference.repository}: {error}") from error

    @contextlib.asynccontextmanager
    async def _follow(
        self, host: Host, url: str, sending: "_Sending", *, authorization: str | None, own: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MAX_REDIRECTS + 1):
                own = own and _same_origin(url, host)
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
        if not is_url(target):
            raise PermissionDenied(f"registry {host.authority} redirects to {target[:200]!r}")
        if target.startswith("http:") and url.startswith("https:"):
            raise PermissionDenied(
                f"registry {host.authority} redirects from https to http at {urlsplit(target).netloc}"
            )
        return target

    @contextlib.asynccontextmanager
    async def _one(self, url: str, sending: "_Sending", host: Host) -> AsyncIterator[aiohttp.ClientResponse]:
        own = _same_origin(url, host)
        whom = f"registry {host.authority}" if own else f"{urlsplit(url).netloc}, where {host.authority} redirects to,"
        proxy = self.proxies.between(url)
        try:
            response = await self.session.request(
                sending.method,
                URL(url, encoded=True),
                headers={"Accept-Encoding": "identity", **sending.headers},
                data=sending.body() if sending.body else None,
                allow_redirects=False,
                ssl=host.tls if own else host.tls_elsewhere,
                proxy=proxy,
                timeout=self._timeout(host, sending),
            )
        except FAILURES as error:
            raise unreachable(error, whom, f"repository {self.reference.repository}") from error
        try:
            yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    def _timeout(self, host: Host, sending: "_Sending") -> aiohttp.ClientTimeout:
        usual = self.session.timeout
        return aiohttp.ClientTimeout(
            total=None,
            sock_connect=host.dial_timeout or usual.sock_connect,
            sock_read=sending.wait or usual.sock_read,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sending:
    method: str
    headers: Mapping[str, str]
    body: Body | None = None
    wait: float = 0.0


async def refusal(response: aiohttp.ClientResponse, registry: str, reference: Reference, what: str) -> CarinaError:
    """The error that a status by which registries refuse stands for."""
    status, repository = response.status, reference.repository
    try:
        body = await response.content.read(MAX_BODY)
    except FAILURES:
        body = b""
    tail = f"({status}){stated_reason(body)}"
    if status == 404:
        return NotFound(f"{registry} has no {what} in repository {repository}")
    if status == 416:
        return DataLoss(f"{registry} has fewer bytes of {what} in repository {repository} than its manifest says")
    if status == 401:
        return Unauthenticated(f"{registry} wants to know who asks for {what} of repository {repository} {tail}")
    if status == 403:
        return PermissionDenied(f"{registry} refuses access to {what} of repository {repository} {tail}")
    if status in TRANSIENT:
        verb = "limits the rate of requests" if status == LIMITED else "fails"
        return refused(f"{registry} {verb}: {what} of repository {repository} {tail}", status, response.headers)
    if status == 413:
        return TooLarge(f"{registry} refuses {what} of repository {repository} as too large {tail}")
    return Unavailable(f"{registry} answers {status} for {what} of repository {repository}{stated_reason(body)}")


def _check_encoding(response: aiohttp.ClientResponse, registry: str, reference: Reference, what: str) -> None:
    # Content-Encoding is never undone: a small answer would become a large one, and digests are of what is sent.
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Unavailable(
            f"{registry} sends {what} of repository {reference.repository} with encoding {encoding[:40]!r}"
        )


def _same_origin(url: str, host: Host) -> bool:
    return _origin(url) == _origin(host.base)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
