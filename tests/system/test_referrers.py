"""`carina images referrers`: what a registry has about an image, through the constellation and without one."""

import json
import subprocess
import sys
from pathlib import Path

from support import image
from support.constellation import Constellation
from support.image import OCI_INDEX, OCI_MANIFEST, Blob, Image
from support.registry import Registry

CARINA = Path(sys.executable).parent / "carina"
PASSWORD = "$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K"


def _signed(registry: Registry, repository: str) -> tuple[Image, list[dict[str, object]]]:
    """An image, and two artifacts that refer to it, listed under the tag of registries without the listing."""
    made = image.build(layers=[image.layer(image.tar({"f": b"1"}))])
    registry.push(repository, "1", made)
    entries: list[dict[str, object]] = []
    assert made.config is not None
    for kind in ("application/test.signature", "application/test.parts"):
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": made.config.descriptor(),
            "layers": [],
            "subject": made.root.descriptor(),
            "annotations": {"kind": kind},
        }
        artifact = Blob(media_type=OCI_MANIFEST, data=json.dumps(document).encode())
        registry.push_document(repository, artifact.digest, artifact)
        entries.append(artifact.descriptor() | {"annotations": {"kind": kind}, "artifactType": kind})
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    tag = made.digest.replace(":", "-")
    registry.push_document(repository, tag, Blob(media_type=OCI_INDEX, data=json.dumps(index).encode()))
    return made, entries


def test_referrers_are_listed(constellation: Constellation, registry: Registry, tmp_path: Path) -> None:
    """All, or those of one type, as a table or as JSON that an index could hold; the same without a daemon."""
    made, entries = _signed(registry, "referred/image")
    reference = registry.reference("referred/image", "1")

    told = constellation.carina("images", "referrers", "--format", "json", reference).output
    kind = ("--artifact-type", "application/test.parts")
    table = constellation.carina("images", "referrers", *kind, f"{reference.rpartition(':')[0]}@{made.digest}").output
    alone = subprocess.run(
        [CARINA, "--embedded", tmp_path / "images", "images", "referrers", "--format", "json", reference],
        capture_output=True,
        check=True,
        timeout=60,
    )

    assert json.loads(told) == {"subject": made.root.descriptor(), "referrers": entries}
    assert json.loads(alone.stdout) == json.loads(told)
    header, *rows = table.splitlines()
    assert header.split() == ["DIGEST", "ARTIFACT", "TYPE", "MEDIA", "TYPE", "SIZE"]
    assert [row.split()[:2] for row in rows] == [[entries[1]["digest"], "application/test.parts"]]


def test_none_is_an_answer_and_no_image_an_error(constellation: Constellation, registry: Registry) -> None:
    """An image without referrers has an empty list; a tag that is not there is named."""
    reference = registry.push("referred/plain", "1", image.build(layers=[image.layer(image.tar({"f": b"2"}))]))
    found = constellation.carina("images", "referrers", "--format", "json", reference).output
    missing = constellation.carina("images", "referrers", registry.reference("referred/plain", "none"), check=False)
    assert json.loads(found)["referrers"] == []
    assert missing.status != 0
    assert "has no tag none" in missing.error


def test_credentials_go_to_the_registry(constellation: Constellation, tmp_path: Path) -> None:
    """A registry that asks who asks gets the name and the password of the command line, and no list goes without."""
    with Registry(tmp_path) as public:
        made, entries = _signed(public, "referred/private")
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(f"user:{PASSWORD}\n")
    with Registry(tmp_path, auth={"htpasswd": {"realm": "test", "path": str(htpasswd)}}) as private:
        reference = private.reference("referred/private", "1")
        refused = constellation.carina("images", "referrers", reference, check=False)
        told = constellation.carina("images", "referrers", "-u", "user:pass", "--format", "json", reference).output

    assert "asks for credentials, and there are none" in refused.error
    assert json.loads(told)["referrers"] == entries
    assert json.loads(told)["subject"]["digest"] == made.digest
