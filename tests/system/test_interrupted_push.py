"""Pushes that are interrupted in the middle of a layer, and done again: what the registry has is not sent twice."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from support.constellation import BIN, Constellation
from support.image import Image, build, layer, tar
from support.link import Link, threaded_link
from support.registry import Registry

SMALL = layer(tar({"small": os.urandom(600_000)}), "")
BIG = layer(tar({"big": os.urandom(4_000_000)}), "")


@pytest.fixture
def image() -> Image:
    return build(layers=[SMALL, BIG])


@pytest.fixture
def slow(registry: Registry) -> Iterator[Link]:
    with threaded_link(registry.port, up_rate=2e6) as link:
        yield link


def wait(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def imaged(constellation: Constellation) -> int:
    """The process of imaged; 0 while there is none that is healthy."""
    lines = constellation.carina("status", *constellation.paths, check=False).output.splitlines()
    fields = [line.split() for line in lines if line.startswith("imaged")]
    return int(fields[0][2]) if fields and fields[0][1] == "ok" else 0


@pytest.mark.parametrize("how", ["ctrl-c", "killed"])
def test_a_push_is_done_again(
    constellation: Constellation, registry: Registry, slow: Link, image: Image, how: str
) -> None:
    """Ctrl-C and a killed imaged end a push without a tag or a traceback; the next one sends what is missing."""
    source = registry.push("test/source", how, image)
    constellation.carina("pull", "--no-unpack", source)
    target = f"{slow.host}/test/pushed-{how}:1"
    killed, before = imaged(constellation), registry.uploaded(SMALL.blob.digest)
    command = [str(BIN / "carina"), "--address", constellation.address, "--namespace", constellation.namespace]
    pushing = subprocess.Popen(
        [*command, "push", source, target], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait(lambda: registry.uploaded(SMALL.blob.digest) > before and slow.sent > SMALL.blob.size + BIG.blob.size // 3)
    if how == "ctrl-c":
        pushing.send_signal(signal.SIGINT)
    else:
        assert killed
        os.kill(killed, signal.SIGKILL)
    _, error = pushing.communicate(timeout=60)
    assert pushing.returncode != 0
    assert "Traceback" not in error
    if how == "killed":
        wait(lambda: imaged(constellation) not in (0, killed))
    constellation.carina("images", "rm", "--sync", source)
    refused = constellation.carina("pull", "--no-unpack", registry.reference(f"test/pushed-{how}", "1"), check=False)
    assert "has no tag 1" in refused.error or "has no repository" in refused.error

    constellation.carina("pull", "--no-unpack", source)
    constellation.carina("push", source, target)

    assert registry.uploaded(SMALL.blob.digest) == before + 1
    constellation.carina("pull", "--no-unpack", registry.reference(f"test/pushed-{how}", "1"))
    listed = constellation.ctr("images", "ls").output
    assert [line.split()[2] for line in listed.splitlines() if "pushed" in line] == [image.digest]
