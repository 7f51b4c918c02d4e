"""Docker's config.json and credential helpers, which are real programs here."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carina.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from carina.transfer import Credentials
from carina.transfer.dockerconfig import DockerConfig

PASSWORD = base64.b64encode(b"user:pa:ss").decode()


async def written(directory: Path, document: Any) -> DockerConfig:
    path = directory / "config.json"

    def write() -> DockerConfig:
        path.write_text(json.dumps(document))
        return DockerConfig.read(path)

    return await asyncio.to_thread(write)


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program `docker-credential-test`."""
    path = directory / "docker-credential-test"
    path.write_text(f"#!/bin/sh\nread server\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


async def ask(config: DockerConfig, host: str) -> Credentials | None:
    return await config.credentials(host, [])


async def test_passwords_and_tokens_of_the_file(tmp_path: Path) -> None:
    """Hosts are found under each of the names that Docker writes, and get what is meant for them only."""
    config = await written(
        tmp_path,
        {
            "auths": {
                "https://index.docker.io/v1/": {"auth": PASSWORD},
                "registry.test:5000": {"username": "a", "password": "b"},
                "https://tokens.test/v2/": {"auth": PASSWORD, "identitytoken": "long"},
                "bearer.test": {"registrytoken": "short"},
                "empty.test": {},
            },
            "HttpHeaders": {"User-Agent": "docker"},
        },
    )

    assert await ask(config, "registry-1.docker.io") == Credentials(username="user", secret="pa:ss")
    assert await ask(config, "registry.test:5000") == Credentials(username="a", secret="b")
    assert await ask(config, "tokens.test") == Credentials(secret="long")
    assert await ask(config, "bearer.test") == Credentials(header="Bearer short")
    assert [await ask(config, host) for host in ("empty.test", "registry.test", "docker.io.test")] == [None] * 3


async def test_helpers_are_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper's answer comes before the file's; what it does not know is looked up there."""
    script = """case $server in
        known.test) echo '{"ServerURL":"known.test","Username":"n","Secret":"s"}';;
        token.test) echo '{"Username":"<token>","Secret":"long"}';;
        https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"s"}';;
        *) echo "credentials not found in native keychain"; exit 1;;
    esac"""
    helper(tmp_path, monkeypatch, script)
    auths = {"known.test": {}, "unknown.test": {"auth": PASSWORD}}
    config = await written(tmp_path, {"auths": auths, "credsStore": "test"})

    assert await ask(config, "known.test") == Credentials(username="n", secret="s")
    assert await ask(config, "token.test") == Credentials(secret="long")
    assert await ask(config, "registry-1.docker.io") == Credentials(username="hub", secret="s")
    assert await ask(config, "unknown.test") == Credentials(username="user", secret="pa:ss")
    assert await ask(config, "nowhere.test") is None
    only = await written(tmp_path, {"credHelpers": {"token.test": "test"}})
    assert await ask(only, "token.test") == Credentials(secret="long")
    assert await ask(only, "known.test") is None


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("exit 3", r"docker-credential-test fails for registry.test \(exit status 3\)"),
        ("echo secret", "answers with something else than credentials"),
        ("head -c 5000000 /dev/zero", "answers with something else than credentials"),
    ],
)
async def test_helpers_that_fail_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str
) -> None:
    """A helper that fails or talks nonsense is named, and what it said is not repeated."""
    helper(tmp_path, monkeypatch, script)
    with pytest.raises(FailedPrecondition, match=text) as caught:
        await ask(await written(tmp_path, {"credsStore": "test"}), "registry.test")

    assert "secret" not in str(caught.value)


async def test_a_helper_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper has its time; nothing that it started is left after it."""
    helper(tmp_path, monkeypatch, f"sleep 3600 & echo $! >{tmp_path}/pid; wait")
    path = tmp_path / "config.json"
    config = DockerConfig(path=path, store="test", seconds=0.5)

    with pytest.raises(DeadlineExceeded, match=r"gives no credentials for registry.test within 0.5 s"):
        await ask(config, "registry.test")

    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    async with asyncio.timeout(30):
        while child.exists() and child.read_text().split()[2] != "Z":
            await asyncio.sleep(0.01)


async def test_a_helper_is_a_name_and_no_path(tmp_path: Path) -> None:
    """What the file calls a helper can't be some other program."""
    for name in ("../../bin/sh", "a/b", "a b", "-x", "none-such"):
        with pytest.raises(FailedPrecondition, match=r"which is no helper|can't be started: No such file"):
            await ask(await written(tmp_path, {"credsStore": name}), "registry.test")


def test_the_file_is_where_docker_has_it(tmp_path: Path) -> None:
    """DOCKER_CONFIG names the directory; without the file there are no credentials."""
    assert DockerConfig.default_path({"DOCKER_CONFIG": "/x", "HOME": "/h"}) == Path("/x/config.json")
    assert DockerConfig.default_path({"HOME": "/h"}) == Path("/h/.docker/config.json")
    assert not DockerConfig.read(tmp_path / "none")


@given(st.binary() | st.text().map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever the file holds, it is read or refused, without being shown."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(data)
    message = ""
    try:
        DockerConfig.read(path)
    except InvalidArgument as error:
        message = str(error)

    assert message in ("", f"Docker's configuration {path} is not valid")
