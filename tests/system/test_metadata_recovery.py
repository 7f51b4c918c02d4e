"""The records of a whole constellation: backed up while it runs, restored, and rebuilt from the stores."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image
from support.constellation import BIN, Constellation, Result
from support.registry import Registry

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def own() -> Iterator[Constellation]:
    """Its database is lost again and again, so it is nobody else's."""
    with Constellation() as running:
        yield running


@pytest.fixture(scope="module")
def reference(own: Constellation, registry: Registry) -> str:
    layers = (image.layer(image.busybox_tar()), image.layer(image.tar({"etc/motd": b"recovered"})))
    name = registry.push("test/recovered", "1", image.build(layers=layers))
    own.carina("pull", "--plain-http", name)
    return name


def metadata(constellation: Constellation, command: str, *arguments: str) -> Result:
    line = [str(BIN / "carina"), "metadata", command, *arguments, *constellation.paths]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def runs(constellation: Constellation, reference: str, id: str) -> str:
    return constellation.carina("run", "--rm", reference, id, "cat", "/etc/motd").output


def listed(constellation: Constellation) -> tuple[list[str], list[str]]:
    return (
        constellation.carina("content", "ls", "-q").output.split(),
        constellation.carina("snapshots", "ls", "-q").output.split(),
    )


def test_backup_and_restore(own: Constellation, registry: Registry, reference: str, tmp_path: Path) -> None:
    """A backup made while everything runs brings it all back; what was made since is listed as orphans."""
    saved = tmp_path / "saved"
    assert own.carina("metadata", "backup", str(saved)).output.startswith(f"{saved}: ")
    assert saved.stat().st_mode & 0o777 == 0o600
    again = own.carina("metadata", "backup", str(saved), check=False)
    assert (again.status, again.error) == (1, f"carina: {saved} is there already: it is not overwritten\n")
    before = listed(own)
    own.carina("pull", "--plain-http", registry.push("test/later", "1", image.build(run={"Cmd": ["later"]})))

    own.stop()
    assert metadata(own, "restore", str(saved)).status == 0
    own.start()

    assert listed(own) == before
    check = own.carina("check", check=False)
    assert check.status == 1
    assert {line.split()[0] for line in check.output.splitlines()[1:-1]} == {"orphaned"}
    assert own.carina("check", "--repair", "--remove-orphans", check=False).status == 0
    assert runs(own, reference, "restored") == "recovered"


def test_rebuild(own: Constellation, reference: str, tmp_path: Path) -> None:
    """Damage in one place costs nothing else; of a database that tells nothing, the stores tell all but names."""
    database = own.root / "metadatad" / "metadata.sqlite"
    images = tmp_path / "images"
    own.carina("images", "label", reference, "kept=yes")
    images.write_text(own.carina("images", "ls").output)
    before = listed(own)
    own.stop()
    damage(database)
    assert metadata(own, "rebuild").status == 0
    own.start()
    assert listed(own) == before
    assert "kept=yes" in own.carina("images", "ls").output
    assert own.carina("check").status == 0

    own.stop()
    database.write_bytes(b"nonsense" * 1000)
    done = metadata(own, "rebuild", "--namespace", own.namespace, "--images", str(images))
    assert done.status == 0, done
    assert "salvaged from the old database: nothing\n" in done.output
    assert f"found in the stores: {len(before[1])} snapshots, {len(before[0])} blobs, 1 images\n" in done.output
    own.start()
    assert listed(own) == before
    assert own.carina("check").status == 0
    lease = own.carina("leases", "ls", "-q").output.strip()
    assert lease.startswith("rebuilt-")
    own.carina("leases", "rm", lease)
    own.carina("gc", "run", "--sync")
    assert listed(own) == before  # the image keeps it all, by the references that were read from its documents
    assert runs(own, reference, "rebuilt") == "recovered"


def damage(path: Path) -> None:
    """Spoil the pages of the log of events, which nothing needs."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"containerd.events.")
    start = at - at % 4096
    data[start : start + 4096] = b"\xff" * 4096
    path.write_bytes(data)
