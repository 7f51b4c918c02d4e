"""Programs that say whether an image may be pulled."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument, PermissionDenied
from carina.transfer import Store
from imaged.transfer import Transfers
from imaged.verifiers import MEDIA_TYPE, Verifiers, verifiers
from support.image import build
from support.pulls import Hostile, World

IMAGE = Descriptor(media_type="application/x", digest=Digest.of(b"x"), size=1, annotations={"a": "b"})


def program(directory: Path, name: str, body: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


async def test_each_is_called_as_containerd_calls_it(tmp_path: Path) -> None:
    """In the order of their names, with the reference, the digest, and the descriptor on the standard input."""
    for name in ("b", "a"):
        program(tmp_path / "bin", name, f'echo "{name} $@" >> {tmp_path}/called; cat >> {tmp_path}/called; echo fine')

    await Verifiers(bin_dir=tmp_path / "bin").check("example.test/a:1", IMAGE)

    first, second = (tmp_path / "called").read_text().replace("}b", "}\nb").splitlines()[::2]
    assert first == f"a -name example.test/a:1 -digest {IMAGE.digest} -stdin-media-type {MEDIA_TYPE}"
    assert second.startswith("b -name")
    described = json.loads((tmp_path / "called").read_text().splitlines()[1].removesuffix(second))
    assert described == {
        "mediaType": "application/x",
        "digest": IMAGE.digest,
        "size": 1,
        "annotations": {"a": "b"},
    }


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("echo not signed; exit 3", "verifier v rejects it with status 3: not signed"),
        ("kill -9 $$", "verifier v rejects it with status -9"),
        ("sleep 1000 & sleep 1000", r"verifier v takes more than 0.3 s"),
        ("head -c 10000000 /dev/zero; exit 1", "rejects it with status 1"),
    ],
)
async def test_what_does_not_accept_rejects(tmp_path: Path, body: str, complaint: str) -> None:
    """A status, a signal, silence and floods of output all end in one sentence, and in time."""
    program(tmp_path / "bin", "v", body)

    with pytest.raises(PermissionDenied, match=complaint):
        await Verifiers(bin_dir=tmp_path / "bin", per_verifier_timeout=0.3 if "sleep" in body else 30).check("i", IMAGE)


async def test_what_can_not_be_run_rejects(tmp_path: Path) -> None:
    """A file that is no program, and a directory that can't be listed, never let an image through."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "text").write_text("hello")
    with pytest.raises(PermissionDenied, match="verifier text can't be run"):
        await Verifiers(bin_dir=tmp_path / "bin").check("i", IMAGE)
    with pytest.raises(PermissionDenied, match="can't be listed"):
        await Verifiers(bin_dir=tmp_path / "bin" / "text").check("i", IMAGE)


async def test_so_many_are_called(tmp_path: Path) -> None:
    """Those after the limit are not; without a directory there are none."""
    program(tmp_path / "bin", "1", "exit 0")
    program(tmp_path / "bin", "2", "exit 1")

    await Verifiers(bin_dir=tmp_path / "bin", max_verifiers=1).check("i", IMAGE)
    await Verifiers(bin_dir=tmp_path / "none").check("i", IMAGE)
    with pytest.raises(PermissionDenied):
        await Verifiers(bin_dir=tmp_path / "bin", max_verifiers=-1).check("i", IMAGE)


async def test_a_rejected_image_is_not_fetched(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """Nothing but the name was asked of the registry, and nothing is recorded."""
    program(tmp_path / "bin", "v", "exit 1")
    reference = hostile.put(build())
    stores = replace(world.transfers().stores, verifiers=Verifiers(bin_dir=tmp_path / "bin"))

    with pytest.raises(PermissionDenied, match="verifier v rejects it"):
        await Transfers(stores).fetch(reference, Store(name=reference))

    assert world.images.images == {}
    assert world.content.blobs == {}
    assert {request.path.rpartition("/")[2] for request in hostile.requests} == {"latest"}


def test_settings_are_checked() -> None:
    """containerd's keys, and nothing else."""
    assert verifiers({"per_verifier_timeout": "1m30s", "max_verifiers": -1}).per_verifier_timeout == 90
    tables: list[object] = [
        {"per_verifier_timeout": 10},
        {"per_verifier_timeout": "x"},
        {"max_verifiers": -2},
        {"x": 1},
        [],
    ]
    for table in tables:
        with pytest.raises(InvalidArgument, match=r"images\.verifier"):
            verifiers(table)
