"""Lists of everything are written straight from rows, and are what the codec would have written."""

import functools
import sqlite3
import string

from hypothesis import given
from hypothesis import strategies as st

from carina import context
from carina.api.containerd.services.content.v1 import ListContentResponse
from carina.api.containerd.services.images.v1 import ListImagesResponse
from carina.content import Info
from carina.content.client import info_to_wire
from carina.descriptor import Descriptor
from carina.digest import HEX_LENGTHS, Digest
from carina.images import Image
from carina.images.client import to_wire
from carina.rpc import codec
from carina.sqlite import from_time, to_time
from carina.sqlite.migrations import apply, migrations
from conformance.content_suite import put
from metadatad import listing
from metadatad.columns import pack
from support.content import directory
from support.views import view

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=200)
MAPS = st.dictionaries(TEXT, TEXT, max_size=4)
MOMENTS = st.one_of(st.integers(0, 10**7), st.integers(1_500_000_000_000_000, 2_000_000_000_000_000))
DIGESTS = st.sampled_from(sorted(HEX_LENGTHS)).flatmap(
    lambda name: st.text(string.hexdigits[:16], min_size=HEX_LENGTHS[name], max_size=HEX_LENGTHS[name]).map(
        lambda hex: Digest(f"{name}:{hex}")
    )
)
INFOS = st.builds(
    lambda digest, size, labels, created, updated: Info(
        digest=digest, size=size, labels=labels, created_at=to_time(created), updated_at=to_time(updated)
    ),
    DIGESTS,
    st.integers(0, 2**62),
    MAPS,
    MOMENTS,
    MOMENTS,
)
IMAGES = st.builds(
    lambda name, info, annotations, kind: Image(
        name=name,
        target=Descriptor(media_type=kind, digest=info.digest, size=info.size, annotations=annotations),
        labels=info.labels,
        created_at=info.created_at,
        updated_at=info.updated_at,
    ),
    TEXT,
    INFOS,
    MAPS,
    TEXT,
)


@functools.cache
def _empty() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    apply(connection, migrations("metadatad"), name="memory")
    connection.execute("INSERT INTO namespaces (name) VALUES ('one')")
    data = connection.serialize()
    connection.close()
    return data


def _database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.deserialize(_empty())
    return connection


@given(st.lists(INFOS, max_size=5, unique_by=lambda info: info.digest))
def test_blobs_are_listed_as_the_codec_writes_them(infos: list[Info]) -> None:
    """Whatever a row holds, its bytes are those of the message made from it."""
    connection = _database()
    for info in infos:
        assert info.created_at is not None
        assert info.updated_at is not None
        row = ("one", info.digest, info.size, pack(info.labels), from_time(info.created_at), from_time(info.updated_at))
        connection.execute(
            "INSERT INTO blobs (namespace, digest, size, labels, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)", row
        )
    expected = [info_to_wire(info) for info in sorted(infos, key=lambda info: info.digest)]
    messages, after = listing.content(connection, "one", "", 100)
    assert b"".join(messages) == codec.encode(ListContentResponse(info=expected))
    assert after == ""
    connection.close()


@given(st.lists(IMAGES, max_size=5, unique_by=lambda image: image.name))
def test_images_are_listed_as_the_codec_writes_them(images: list[Image]) -> None:
    """Whatever a row holds, its bytes are those of the message made from it."""
    connection = _database()
    for image in images:
        assert image.created_at is not None
        assert image.updated_at is not None
        target = image.target
        row = ("one", image.name, target.media_type, target.digest, target.size, pack(target.annotations))
        moments = from_time(image.created_at), from_time(image.updated_at)
        connection.execute(
            "INSERT INTO images (namespace, name, media_type, digest, size, annotations, labels, created_at, "
            "updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, pack(image.labels), *moments),
        )
    expected = [to_wire(image) for image in sorted(images, key=lambda image: image.name.encode())]
    assert listing.images(connection, "one") == codec.encode(ListImagesResponse(images=expected))
    connection.close()


def test_a_list_comes_in_parts() -> None:
    """Blobs come in messages of a hundred, and a part begins behind the last digest of the one before."""
    connection = _database()
    for number in range(250):
        row = ("one", f"sha256:{number:064x}", number)
        connection.execute(
            "INSERT INTO blobs (namespace, digest, size, created_at, updated_at) VALUES (?, ?, ?, 0, 0)", row
        )
    first, after = listing.content(connection, "one", "", 240)
    second, end = listing.content(connection, "one", after, 240)
    found = [len(codec.decode(ListContentResponse, data).info) for data in (*first, *second)]
    assert found == [100, 100, 40, 10]
    assert (after, end) == (f"sha256:{239:064x}", "")
    connection.close()


async def test_lists_with_and_without_filters_agree() -> None:
    """A list without filters, which takes the short way, is the list with a filter that lets everything through."""
    with directory() as path:
        async with view(path) as one:
            with context.within(namespace="one"):
                digest = await put(one.content, b"data", {"ключ": "значение", "k": "v"})
                await one.images.create(
                    Image(name="a", target=Descriptor(media_type="m", digest=digest, size=4), labels={"x": "y"})
                )
                blobs = [info async for info in one.content.walk()]
                assert blobs == [info async for info in one.content.walk(["digest"])]
                assert [info.digest for info in blobs] == [digest]
                images = await one.images.list()
                assert images == await one.images.list(["name"])
                assert [image.name for image in images] == ["a"]
