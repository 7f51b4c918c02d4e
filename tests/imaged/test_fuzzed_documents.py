"""Names and documents of any kind, from whoever sends them: read, or refused with one sentence."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.images import manifest
from carina.reference import Reference, normalize

DIGEST = f"sha256:{'a' * 64}"
NAMES = st.text(alphabet="abAB01./:@-_[] \n\0é", max_size=80) | st.text(max_size=40)
PARTS = st.sampled_from(
    ["docker.io", "localhost:5000", "[::1]:80", "a/b", "A", ":1", f"@{DIGEST}", "/", "..", "a__b", ""]
)


@given(NAMES | st.lists(PARTS, max_size=5).map("".join))
def test_any_reference_is_read_or_refused(text: str) -> None:
    """What is taken for a reference is written as it was read, and can be put into a URL."""
    try:
        found = Reference.parse(text)
    except InvalidArgument:
        return

    assert str(found) == text
    assert Reference.parse(str(found)) == found
    assert not set(found.repository) & set("?#%\\ \n\0")
    assert ".." not in found.repository.split("/")


@given(NAMES | st.lists(PARTS, max_size=5).map("".join))
def test_any_short_name_is_completed_or_refused(text: str) -> None:
    """A completed name is a full reference, and completing it again changes nothing."""
    try:
        found = normalize(text)
    except InvalidArgument:
        return

    assert normalize(str(found)) == found == Reference.parse(str(found))


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=10)
WORDS = st.sampled_from(
    [
        manifest.OCI_INDEX,
        manifest.OCI_MANIFEST,
        manifest.OCI_CONFIG,
        manifest.OCI_LAYER,
        DIGEST,
        "sha256:../..",
        "amd64",
    ]
)
KEYS = st.sampled_from(
    "schemaVersion mediaType config layers manifests digest size platform architecture os"
    " annotations urls fsLayers subject artifactType rootfs diff_ids".split()
)
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=25,
)
DESCRIPTORS = st.fixed_dictionaries(
    {"mediaType": WORDS | SCALARS, "digest": WORDS | SCALARS, "size": SCALARS},
    optional={"urls": VALUES, "platform": VALUES},
)
DOCUMENTS = st.fixed_dictionaries(
    {"schemaVersion": st.just(2) | SCALARS},
    optional={
        "mediaType": WORDS | SCALARS,
        "config": DESCRIPTORS | VALUES,
        "layers": st.lists(DESCRIPTORS | VALUES, max_size=3) | VALUES,
        "manifests": st.lists(DESCRIPTORS | VALUES, max_size=3) | VALUES,
    },
)


def parsed(data: bytes, media_type: str) -> manifest.Index | manifest.Manifest | None:
    try:
        return manifest.parse(data, Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data)))
    except InvalidArgument:
        return None


@given(DOCUMENTS | VALUES, st.sampled_from([manifest.OCI_INDEX, manifest.OCI_MANIFEST, manifest.DOCKER_MANIFEST]))
def test_any_document_is_read_or_refused(document: Any, media_type: str) -> None:
    """A document is an index or a manifest and never both, of what its descriptor says, with whole descriptors."""
    found = parsed(json.dumps(document).encode(), media_type)
    if found is None:
        return

    assert isinstance(found, manifest.Index) == (media_type == manifest.OCI_INDEX)
    assert not {"manifests", "layers"} <= {key for key, value in document.items() if value}
    assert all(child.size >= 0 and child.media_type and type(child.digest) is Digest for child in found.children)


@given(st.binary(max_size=200), st.sampled_from([manifest.OCI_INDEX, manifest.OCI_MANIFEST]))
def test_any_bytes_are_read_or_refused(data: bytes, media_type: str) -> None:
    """Bytes that are no JSON are no document."""
    assert parsed(data, media_type) is None


def test_a_document_nested_without_end_is_refused() -> None:
    """Depth is no way to exhaust the stack."""
    assert parsed(b'{"schemaVersion":2,"manifests":' + b"[" * 500_000, manifest.OCI_INDEX) is None
