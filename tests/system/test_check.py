"""`carina check` and `contentd verify` on a whole constellation: damage is found, put aside, and mended by a pull."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import image
from support.constellation import BIN, Constellation, Result
from support.registry import Registry

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def own() -> Iterator[Constellation]:
    """The check looks at every namespace, so it has a constellation of its own."""
    with Constellation() as running:
        yield running


def check(constellation: Constellation, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    done = constellation.carina("check", "--format", "json", *arguments, check=False)
    answer = json.loads(done.output)
    assert answer["unchecked"] == []
    return done.status, answer["findings"]


def verify(constellation: Constellation, *arguments: str) -> Result:
    command = [str(BIN / "contentd"), *constellation.paths, "verify", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def stored(constellation: Constellation, digest: str) -> Path:
    algorithm, _, name = digest.partition(":")
    return constellation.root / "contentd" / "blobs" / algorithm / name


def spoil(path: Path) -> None:
    """As a disk does it: in place, with the size unchanged."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(0o444)


@pytest.mark.parametrize(("finder", "puller"), [("check", "carina"), ("verify", "ctr")])
def test_a_pull_mends_damage(own: Constellation, registry: Registry, finder: str, puller: str) -> None:
    """Manifest, configuration and layer that were damaged are found, put aside, fetched again and the image runs."""
    layers = (image.layer(image.busybox_tar()), image.layer(image.tar({"etc/motd": f"{finder} {puller}".encode()})))
    pushed = image.build(layers=layers)
    reference = registry.push(f"test/damaged-{finder}-{puller}", "1", pushed)

    def pull() -> None:
        if puller == "carina":
            own.carina("pull", "--plain-http", reference)
        else:
            own.ctr("images", "pull", "--plain-http", reference)

    pull()
    assert check(own) == (0, [])
    damaged = sorted({pushed.digest, layers[1].blob.digest, *(blob.digest for blob in pushed.blobs[-1:])})
    before = own.carina("content", "ls").output
    for digest in damaged:
        spoil(stored(own, digest))

    if finder == "check":
        status, findings = check(own)
        assert (status, sorted(found["id"] for found in findings)) == (1, damaged)
        assert {found["kind"] for found in findings} == {"damaged"}
        assert check(own, "--repair")[0] == 1
    else:
        found = verify(own, "--quarantine", "--rate", "0")
        assert (found.status, sorted(line.split("\t")[0] for line in found.output.splitlines())) == (1, damaged)
    status, findings = check(own)
    assert (status, sorted((found["kind"], found["id"]) for found in findings)) == (
        1,
        [("missing", digest) for digest in damaged],
    )
    pull()
    assert check(own) == (0, [])
    assert verify(own, "--rate", "0").status == 0
    assert [line.split()[0] for line in own.carina("content", "ls").output.splitlines()] == [
        line.split()[0] for line in before.splitlines()
    ]
    ran = own.carina("run", "--rm", reference, f"mended-{finder}-{puller}", "cat", "/etc/motd")
    assert ran.output == f"{finder} {puller}"
    assert check(own) == (0, [])


def test_table(own: Constellation, registry: Registry) -> None:
    """People get a table that names each object, and a last line that says what was looked at."""
    pushed = image.build(run={"Cmd": ["table"]})
    own.carina("pull", "--plain-http", registry.push("test/table", "1", pushed))
    assert own.carina("check").output.startswith("0 findings; compared ")
    stored(own, pushed.digest).unlink()
    done = own.carina("check", "--no-hash", check=False)
    header, row, last = done.output.splitlines()
    assert done.status == 1
    assert header.split() == ["WRONG", "NAMESPACE", "TYPE", "OBJECT", "DETAIL", "DONE"]
    assert row.split()[:4] == ["missing", own.namespace, "content", pushed.digest]
    assert last.startswith("1 findings; ")
    assert last.endswith("read 0 blobs again, 0 B")
    own.carina("images", "rm", "--sync", registry.reference("test/table", "1"))
    assert own.carina("check").status == 0


def test_nobody_to_ask(tmp_path: Path) -> None:
    """Where the gateway does not answer, the check has not found anything wrong: it exits with 3."""
    command = [str(BIN / "carina"), "--address", f"unix://{tmp_path}/none.sock", "check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    refused = subprocess.run([*command, "--remove-orphans"], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
