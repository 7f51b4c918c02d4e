"""Image documents: what is read of them, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.images import manifest
from carina.platforms import Platform
from support.image import DOCKER_CONFIG, OCI_CONFIG, build


def described(data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


@pytest.mark.parametrize("docker", [False, True])
def test_the_documents_of_an_image_are_read(docker: bool) -> None:
    """Index, manifest and configuration of both families give platform, layers and how to run it."""
    image = build(
        platforms=("linux/amd64", "linux/arm/v7"),
        docker=docker,
        run={
            "Cmd": ["sh"],
            "Env": ["A=b"],
            "User": "1:2",
            "WorkingDir": "/w",
            "Labels": {"a": "b"},
            "Volumes": {"/v": {}},
        },
    )

    index = manifest.parse(image.root.data, described(image.root.data, image.root.media_type))
    assert isinstance(index, manifest.Index)
    assert index.manifests[1].platform == Platform(os="linux", architecture="arm", variant="v7")
    first = image.manifests[0]
    document = manifest.parse(first.data, index.manifests[0].descriptor)
    assert isinstance(document, manifest.Manifest)
    assert document.config.media_type == (DOCKER_CONFIG if docker else OCI_CONFIG)
    assert image.config is not None
    config = manifest.parse_config(image.config.data, document.config)
    assert config.diff_ids == tuple(one.diff_id for one in image.layers)
    assert (config.cmd, config.env, config.user, config.volumes) == (("sh",), ("A=b",), "1:2", ("/v",))
    assert config.labels == {"a": "b"}


def test_chain_ids_are_those_of_the_specification() -> None:
    """The first layer's chain id is its diff id, each further one hashes the chain so far and the next diff id."""
    a, b = Digest.of(b"a"), Digest.of(b"b")

    assert manifest.chain_ids([a, b]) == [a, Digest.of(f"{a} {b}".encode())]
    assert manifest.chain_ids([]) == []


def test_layers_are_told_from_other_content() -> None:
    """Media types of layers are known in every compression, those of other things are not taken for one."""
    assert manifest.is_layer("application/vnd.oci.image.layer.v1.tar+zstd")
    assert manifest.is_layer("application/vnd.docker.image.rootfs.diff.tar.gzip")
    assert not manifest.is_layer("application/vnd.in-toto+json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(
                    ["schemaVersion", "config", "layers", "manifests", "digest", "size", "mediaType", "rootfs"]
                ),
                x,
            )
        ),
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    """No document makes the reader fail in another way than by refusing it."""
    data = json.dumps(value).encode()
    for media_type in (manifest.OCI_INDEX, manifest.OCI_MANIFEST, "text/plain"):
        for read in (manifest.parse, manifest.parse_config):
            try:
                read(data, described(data, media_type))
            except InvalidArgument:
                continue
    manifest.media_type_of(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    """What is not JSON is refused."""
    with pytest.raises(InvalidArgument):
        manifest.parse(b"\xff" + data, described(data, manifest.OCI_MANIFEST))
