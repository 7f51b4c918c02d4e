"""Pulls that are interrupted in the middle of a layer, and gone on with: every byte comes once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from support.constellation import BIN, Constellation
from support.image import build, layer, tar
from support.link import Link, threaded_link
from support.registry import Registry

BIG = layer(tar({"big": os.urandom(4_000_000)}), "")
SLACK = 700_000
"""Documents, headers, and what was on its way when it was interrupted."""


@pytest.fixture
def slow(registry: Registry) -> Iterator[Link]:
    registry.push("test/interrupted", "1", build(layers=[BIG]))
    with threaded_link(registry.port, rate=3e6) as link:
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


def begin(constellation: Constellation, reference: str, slow: Link) -> subprocess.Popen[str]:
    """A pull by the command line that has got a part of its layer."""
    command = [str(BIN / "carina"), "--address", constellation.address, "--namespace", constellation.namespace]
    pulling = subprocess.Popen(
        [*command, "pull", "--no-unpack", reference], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait(lambda: slow.received > BIG.blob.size // 3)
    return pulling


def ended(pulling: subprocess.Popen[str]) -> str:
    _, error = pulling.communicate(timeout=60)
    assert pulling.returncode != 0
    return error


def test_a_pull_goes_on_where_ctrl_c_stopped_it(constellation: Constellation, slow: Link) -> None:
    """Ctrl-C ends a pull with no more than a word, and the next one fetches the rest."""
    reference = f"{slow.host}/test/interrupted:1"
    pulling = begin(constellation, reference, slow)
    pulling.send_signal(signal.SIGINT)

    assert "Traceback" not in ended(pulling)
    constellation.carina("pull", "--no-unpack", reference)
    assert BIG.blob.size < slow.received < BIG.blob.size + SLACK
    assert BIG.blob.digest in constellation.ctr("content", "ls", "-q").output
    assert constellation.ctr("leases", "ls", "-q").output == ""


def test_a_pull_goes_on_after_imaged_was_killed(constellation: Constellation, slow: Link) -> None:
    """A pull fails with one sentence when imaged is killed; the next one fetches what was missing."""
    reference = f"{slow.host}/test/interrupted:1"
    # Asked before: on a slow machine the pull could be over by the answer.
    killed = imaged(constellation)
    assert killed
    pulling = begin(constellation, reference, slow)
    os.kill(killed, signal.SIGKILL)

    assert "Traceback" not in ended(pulling)
    wait(lambda: imaged(constellation) not in (0, killed))
    constellation.carina("pull", "--no-unpack", reference)
    assert BIG.blob.size < slow.received < BIG.blob.size + SLACK
    assert BIG.blob.digest in constellation.ctr("content", "ls", "-q").output


@pytest.mark.root
def test_a_full_disk_is_named_and_nothing_stays(registry: Registry) -> None:
    """A pull that fills the disk ends with that reason, and what it had fetched is removed to make room."""
    reference = registry.push("test/full", "1", build(layers=[layer(tar({"big": os.urandom(30_000_000)}), "")]))
    constellation = Constellation()
    constellation.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", constellation.root], check=True)
    with constellation:
        failed = constellation.carina("pull", "--no-unpack", reference, check=False)

        assert failed.status != 0
        assert "no space left on device" in failed.error
        wait(lambda: constellation.ctr("content", "ls", "-q").output == "")
        assert constellation.ctr("leases", "ls", "-q").output == ""
        assert constellation.carina("check").output.startswith("0 findings")
