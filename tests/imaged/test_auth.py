"""Challenges and their answers: what is read of a header, which scopes are asked for, and who is told what."""

import json
import string
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from carina.errors import CarinaError, InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from carina.platforms import Platform
from carina.transfer import Access, Credentials, Store
from imaged.auth import Authorizer
from imaged.challenges import Challenge, merged, parse_challenges
from imaged.hosts import Host
from imaged.patience import Transient
from support.image import Blob, Image, build
from support.pulls import Hostile, World

HOST = Platform(os="linux", architecture="amd64")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ("Bearer realm=\"https://a/t\",service=s , scope=\"a:b:c,d\"",
         [("bearer", {"realm": "https://a/t", "service": "s", "scope": "a:b:c,d"})]),
        ('Negotiate, Basic realm="a, b=c", Bearer realm="t"',
         [("negotiate", {}), ("basic", {"realm": "a, b=c"}), ("bearer", {"realm": "t"})]),
        (r'BEARER Realm="a\"b\\c"', [("bearer", {"realm": r'a"b\c'})]),
        ('Bearer realm="one",realm="two"', [("bearer", {"realm": "one"})]),
        ('Bearer realm="never closed', [("bearer", {"realm": ""})]),
        ("", []),
    ],
)  # fmt: skip
def test_challenges_are_read(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """Several challenges in one header, quoted commas and escapes, and a parameter that is there twice."""
    found = [(one.scheme, one.parameters) for one in parse_challenges([header])]

    assert found[: len(expected)] == expected


@given(st.lists(st.text(max_size=200) | st.text(alphabet='aB ,="\\', max_size=60), max_size=20))
def test_any_header_is_read(headers: list[str]) -> None:
    """Whatever a registry sends, reading it ends and gives nothing but challenges."""
    assert all(isinstance(one, Challenge) and one.scheme == one.scheme.lower() for one in parse_challenges(headers))


@given(st.dictionaries(st.text(alphabet=string.ascii_lowercase, min_size=1), st.text(), max_size=5))
def test_what_is_quoted_is_read_back(parameters: dict[str, str]) -> None:
    """A challenge written as the standard has it is read as it was meant."""
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in parameters.items()}
    header = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in quoted.items())

    assert parse_challenges([header]) == [Challenge(scheme="bearer", parameters=parameters)]


def test_scopes_of_one_resource_are_put_together() -> None:
    """What the registry asks for and what we need is one scope for each resource."""
    scopes = ["repository:a/b:pull", "repository:a/b:push,pull", "repository:c:pull", "registry:catalog:*"]

    assert merged(scopes) == ["repository:a/b:pull,push", "repository:c:pull", "registry:catalog:*"]
    assert merged(["repository:h:5000/a:pull"]) == ["repository:h:5000/a:pull"]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_connect=5, sock_read=5)) as session:
        yield session


def at(hostile: Hostile, scheme: str = "http") -> Host:
    return Host(scheme=scheme, authority=hostile.host)


async def answer(authorizer: Authorizer, host: Host, challenge: str, *, refused: str | None = None) -> str | None:
    await authorizer.answer(host, "repository:a:pull", [challenge], refused=refused)
    return authorizer.header(host, "repository:a:pull")


def bearer(hostile: Hostile) -> str:
    return f'Bearer realm="http://{hostile.host}/token",service="s"'


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (200, b"{}", Unavailable, "answers without a token"),
        (200, b"not json", Unavailable, "something else than a token"),
        (200, b'{"token": "a\\nb"}', Unavailable, "without a token"),
        (200, b'{"token": 5}', Unavailable, "something else than a token"),
        (200, b'{"token": "x", "expires_in": "soon"}', Unavailable, "something else than a token"),
        (302, b"", Unavailable, "answers 302"),
        (403, b"", PermissionDenied, r"refuses a token \(403\); credentials may help for repository:a:pull"),
        (503, b"", Transient, r"gives no token \(503\)"),
        (429, b"", Transient, r"gives no token \(429\)"),
    ],
)
async def test_what_a_realm_may_answer(
    session: aiohttp.ClientSession, hostile: Hostile, status: int, body: bytes, error: type[CarinaError], text: str
) -> None:
    """Each way in which a token server fails is an error that names it."""

    async def realm(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/elsewhere", "Retry-After": "7"})

    hostile.answers["token"] = realm
    with pytest.raises(error, match=rf"realm {hostile.host}.*{text}") as caught:
        await answer(Authorizer(session), at(hostile), bearer(hostile))

    assert not isinstance(caught.value, Transient) or caught.value.wait == 7


@pytest.mark.parametrize("realm", ["", "ftp://x/t", "http://u:p@x/t", "/token", "http://x:99999/", "http://a b/"])
async def test_a_realm_is_a_url(session: aiohttp.ClientSession, hostile: Hostile, realm: str) -> None:
    """What can't be asked for a token is refused without asking anybody."""
    with pytest.raises((InvalidArgument, Unauthenticated)):
        await answer(Authorizer(session), at(hostile), f'Bearer realm="{realm}"')

    assert hostile.requests == []


async def test_no_token_is_fetched_in_the_clear_for_a_registry_that_speaks_tls(
    session: aiohttp.ClientSession, hostile: Hostile
) -> None:
    """A registry reached by https can't have credentials sent by http."""

    async def source(host: str, challenges: list[str]) -> Credentials:
        return Credentials(username="u", secret="p")

    with pytest.raises(PermissionDenied, match="wants a token fetched in the clear"):
        await answer(Authorizer(session, source), at(hostile, "https"), bearer(hostile))

    assert hostile.requests == []


async def test_a_token_is_fetched_again_when_it_is_refused_and_not_for_ever(world: World, hostile: Hostile) -> None:
    """A token that a registry takes no more is renewed once; the pull goes on."""
    reference = hostile.put(build())
    given: list[str] = []

    async def registry(request: web.Request) -> web.Response | None:
        if request.path == "/token":
            given.append(f"token-{len(given)}")
            return web.json_response({"token": given[-1]})
        valid = "token-1" if len(hostile.requests) > 6 else "token-0"
        if request.headers.get("Authorization") == f"Bearer {valid}":
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": bearer(hostile)})

    hostile.answers["*"] = registry
    await world.transfers().fetch(reference, Store(name="x", platforms=(HOST,)))

    assert given == ["token-0", "token-1"]


async def test_identity_tokens_are_posted(session: aiohttp.ClientSession, hostile: Hostile) -> None:
    """A secret without a name is a refresh token: it goes into the body of a POST, and into no URL."""
    seen: list[dict[str, str]] = []

    async def realm(request: web.Request) -> web.Response:
        seen.append({key: str(value) for key, value in (await request.post()).items()})
        return web.json_response({"access_token": "fresh"})

    async def source(host: str, challenges: list[str]) -> Credentials:
        return Credentials(secret="long lived")

    hostile.answers["token"] = realm
    assert await answer(Authorizer(session, source), at(hostile), bearer(hostile)) == "Bearer fresh"
    expected = {"grant_type": "refresh_token", "refresh_token": "long lived", "client_id": "carina"}
    assert seen == [{"service": "s", "scope": "repository:a:pull", **expected}]
    assert hostile.requests[0].query_string == ""


async def test_layers_elsewhere_are_fetched_without_credentials(world: World, hostile: Hostile) -> None:
    """A host that only a manifest names gets no credentials and no headers of the caller, whatever it asks for."""
    image = build(index=False)
    foreign = image.layers[0].blob
    elsewhere = Hostile()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", elsewhere.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    elsewhere.port = runner.addresses[0][1]
    urls = [f"http://{elsewhere.host}/{name}" for name in ("evil", "good")]
    elsewhere.objects["good"] = ("application/octet-stream", foreign.data)

    async def evil(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="tell me"'})

    async def source(host: str, challenges: list[str]) -> Credentials:
        assert host == hostile.host
        return Credentials(username="u", secret="p")

    async def registry(request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != "Basic dTpw":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(status=404) if request.path.endswith(foreign.digest) else None

    hostile.answers["*"], elsewhere.answers["evil"] = registry, evil
    document = json.loads(image.root.data)
    document["layers"][0]["urls"] = urls
    root = Blob(media_type=image.root.media_type, data=json.dumps(document).encode())
    reference = hostile.put(Image(root=root, manifests=(root,), blobs=image.blobs))
    access = Access(credentials=source, headers={"X-Mine": "1"})
    try:
        await world.transfers().fetch(reference, Store(name="x", platforms=(HOST,)), access=access)
    finally:
        await runner.cleanup()

    assert [request.path for request in elsewhere.requests] == ["/evil", "/good"]
    for request in elsewhere.requests:
        assert "Authorization" not in request.headers
        assert "X-Mine" not in request.headers
