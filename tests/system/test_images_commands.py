"""`carina push`, `import`, `export` and `images` against a constellation, a registry and other people's tools."""

import json
import secrets
import subprocess
from pathlib import Path

from support import image
from support.constellation import Constellation
from support.registry import Registry


def test_an_image_goes_to_a_registry_and_back(
    constellation: Constellation, registry: Registry, reference: str, tmp_path: Path
) -> None:
    """Pull, push, export, removal and import keep every digest; steps are lines of JSON where asked."""
    constellation.carina("pull", reference)
    digest = _digest(constellation, reference)
    target = registry.reference(f"pushed/{secrets.token_hex(4)}")

    steps = constellation.carina("push", "--json", "--platform", "linux/amd64", reference, target).output
    constellation.carina("push", reference, target)
    archive = tmp_path / "image.tar"
    constellation.carina("export", str(archive), reference)
    constellation.carina("images", "rm", "--sync", reference)
    assert constellation.ctr("content", "ls", "-q").output == ""
    names = constellation.carina("import", "-q", str(archive)).output

    events = [json.loads(line) for line in steps.splitlines()]
    assert events[-1]["event"] == f"Completed push to OCI Registry ({target})"
    assert {"complete", "pushed content"} <= {one["event"] for one in events}
    assert names.split() == [reference]
    assert _digest(constellation, reference) == digest
    assert "complete (3/3)" in constellation.carina("images", "check").output
    assert constellation.carina("images", "check", "-q").output.split() == [reference]


def test_a_layout_in_a_directory_is_imported(constellation: Constellation, tmp_path: Path) -> None:
    """What umoci keeps in a directory comes in under the name that is given, by digest too where asked."""
    made = image.build(layers=[image.layer(image.tar({"f": b"1"}))])
    directory = made.write(tmp_path / "layout", "7")

    names = constellation.carina(
        "import", "--base-name", "example.test/umoci", "--digests", "--no-unpack", str(directory)
    ).output

    assert names.split()[-2:] == ["example.test/umoci:7", f"example.test/umoci@{made.digest}"]
    refused = constellation.carina("import", str(tmp_path), check=False)
    assert "is not an OCI image layout" in refused.error


def test_images_are_converted(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """Each compression gives an image that unpacks to the same tree, which skopeo reads from an export."""
    for kind, suffix in (("--uncompress", ""), ("--gzip", "+gzip"), ("--zstd", "+zstd")):
        name = f"example.test/converted:{kind.strip('-')}"
        constellation.carina("images", "convert", kind, pulled, name)
        archive = tmp_path / f"{kind}.tar"
        constellation.carina("export", str(archive), name)
        copy = ["skopeo", "copy", "-q", "--preserve-digests", f"oci-archive:{archive}", f"dir:{tmp_path}/{suffix}copy"]
        subprocess.run(copy, check=True, capture_output=True, timeout=60)

        layers = json.loads((tmp_path / f"{suffix}copy" / "manifest.json").read_text())["layers"]
        assert {layer["mediaType"] for layer in layers} == {f"{image.OCI_LAYER}{suffix}"}
        target = tmp_path / kind
        target.mkdir()
        constellation.carina("images", "mount", name, str(target))
        try:
            assert (target / "etc/motd").read_text() == "Carina\n"
        finally:
            constellation.carina("images", "unmount", "--rm", str(target))
        assert list(target.iterdir()) == []
    assert constellation.ctr("leases", "ls", "-q").output == ""


def test_converting_as_ctr_does_gives_the_same(constellation: Constellation, registry: Registry) -> None:
    """`ctr images convert` over our content API and `carina images convert` agree on every digest and label."""
    pulled = registry.push("converted/same", "1", image.build(index=False))
    constellation.carina("pull", pulled)
    constellation.ctr("images", "convert", "--uncompress", pulled, "example.test/theirs:1")
    theirs = _labels(constellation)
    constellation.ctr("images", "rm", "--sync", "example.test/theirs:1")

    constellation.carina("images", "convert", "--uncompress", pulled, "example.test/ours:1")

    assert _labels(constellation) == theirs


def test_mounting_writable_and_refusals(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """A writable mount is one's own; a second mount on the directory, and strange platforms, are refused."""
    constellation.carina("images", "mount", "--rw", pulled, str(tmp_path))
    try:
        (tmp_path / "new").write_text("mine")
        again = constellation.carina("images", "mount", pulled, str(tmp_path), check=False)
    finally:
        constellation.carina("images", "unmount", "--rm", str(tmp_path))

    assert again.status == 1
    assert "exists" in again.error
    assert not (tmp_path / "new").exists()
    strange = constellation.carina("images", "convert", "--platform", "linux/s390x", pulled, "x", check=False)
    assert "has nothing for platform linux/s390x" in strange.error


def test_a_tag_needs_its_image(constellation: Constellation, pulled: str) -> None:
    """A further name is refused where it is taken, unless forced; no lease stays behind."""
    constellation.carina("images", "tag", pulled, "example.test/tag:1")
    taken = constellation.carina("images", "tag", pulled, "example.test/tag:1", check=False)
    constellation.carina("images", "tag", "--force", pulled, "example.test/tag:1")

    assert "exists" in taken.error
    assert pulled in constellation.carina("images", "usage").output
    assert constellation.ctr("leases", "ls", "-q").output == ""


def _digest(constellation: Constellation, name: str) -> str:
    (line,) = constellation.ctr("images", "ls", f"name=={name}").output.splitlines()[1:]
    return line.split()[2]


def _labels(constellation: Constellation) -> dict[str, set[str]]:
    """What `ctr content ls` says of each blob: size and labels."""
    lines = [line.split("\t") for line in constellation.ctr("content", "ls").output.splitlines()[1:]]
    return {line[0]: {line[1], *line[-1].split(",")} for line in lines}
