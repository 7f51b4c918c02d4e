"""What every list promises of its filters: containerd's grammar, seen through names, labels and annotations."""

import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.filters import matcher
from carina.images import Image
from carina.images.fields import fields
from conformance.images_suite import INDEX
from conformance.suite import Suite
from support.metadata import Services

DIGEST = Digest.of(b"1")
LABELS = {
    "a": {"foo": "true", "even": "1"},
    "b": {"bar": "a,b", 'with \\ and "': "present"},
    "c": {"more complex label": "present", "foo": "==", "even": "1"},
    "d": {"é": "ü x", "a.b/c": "1", "0": "~", "_": "line\nline"},
    "foo": {"foo": "omg_asdf.asdf-qwer"},
    "fooer": {},
}
EXPECTED = {
    "": "a b c d foo fooer",
    "name": "a b c d foo fooer",
    "labels": "",
    "nonsense": "",
    "nonsense!=x": "a b c d foo fooer",
    "nonsense==x": "",
    "labels.foo": "a c foo",
    "labels.foo,labels.even": "a c",
    "labels.foo==true": "a",
    "labels.foo == true": "a",
    "labels.foo, name==a": "a",
    "labels.foo!=true": "b c d foo fooer",
    'labels.foo==""': "",
    "labels.foo==omg_asdf.asdf-qwer": "foo",
    'labels.foo=="=="': "c",
    'labels.bar=="a,b"': "b",
    "labels.bar~=/^a,b$/": "b",
    "labels.bar~=|a,.|": "b",
    'labels."more complex label"': "c",
    'labels."more complex label"==present,even': "",
    'labels."with \\\\ and \\""==present': "b",
    'labels."a.b/c"==1': "d",
    'labels.a."b/c"==1': "d",
    'labels."é"==ü': "",
    'labels."é"=="ü x"': "d",
    'labels."\\u00e9"~=^ü': "d",
    'labels.0=="~"': "d",
    "labels._~=/e\\nl/": "d",
    "name==foo": "foo",
    'name=="\\x66\\157\\u006f"': "foo",
    "name~=^foo$": "foo",
    "name~=foo": "foo fooer",
    "name~=^[a-c]$,labels.foo": "a c",
    "name!=a,name!=b,name!=c": "d foo fooer",
    f"target.digest=={DIGEST}": "a b c d foo fooer",
    "target.digest~=^sha512": "",
    "target.mediatype~=oci.image.index": "a b c d foo fooer",
    "target": "",
    "target.size": "",
    "annotations.x==y": "a b c d foo fooer",
    'annotations."org.example"==1': "a b c d foo fooer",
    "annotations.org.example==1": "a b c d foo fooer",
    "annotations.org.example!=1": "",
}
"""What each filter selects of the images."""
REFUSED = (
    "name=a",
    "name===a",
    "name==a,",
    ",name==a",
    "labels.",
    "labels..foo",
    "labels.|foo|==x",
    'labels.?"x"',
    "labels.ns/key==value",
    "labels.é",
    "name~=,labels.foo",
    "name==/a",
    "name==/a/",
    'labels."\\g"',
    'labels."\\xaz"',
    'name=="a',
    "name==a b",
    "name==a ",
    "name\0",
    "==a",
    " ",
    "name==.a",
    "name==~a",
)
FIELDS = ("name", "labels.foo", 'labels."a.b/c"', "labels.bar", "labels.é", "annotations.x", "nonsense", "labels._")
VALUES = ("a", '"a"', "true", '"a,b"', "/a/", "|o+|", "^f", "a.b", ".a", "[ab]", '""', "é", '"\\x61"', "a/b", "-")


def made_up(choose: random.Random) -> str:
    """A filter that may be right or not quite."""
    selectors = []
    for _ in range(choose.randint(1, 3)):
        operator = choose.choice(("", "==", "!=", "~=", " == ", "!= ", "~= ", "=~", "=="))
        selectors.append(choose.choice(FIELDS) + operator + (choose.choice(VALUES) if operator else ""))
    return choose.choice((",", ",", ",", ", ", " ,")).join(selectors) + choose.choice(("", "", "", " ", ","))


class FilterSuite(Suite):
    @pytest.fixture
    async def images(self, metadata: Services) -> Services:
        annotations = {"x": "y", "org.example": "1"}
        target = Descriptor(media_type=INDEX, digest=DIGEST, size=1, annotations=annotations)
        for name, labels in LABELS.items():
            await metadata.images.create(Image(name=name, target=target, labels=labels))
        return metadata

    async def selected(self, images: Services, *filters: str) -> str:
        return " ".join(sorted(image.name for image in await images.images.list(filters)))

    async def test_selected(self, images: Services) -> None:
        """Each form of the grammar selects what it says."""
        assert {text: await self.selected(images, text) for text in EXPECTED} == EXPECTED

    async def test_alternatives(self, images: Services) -> None:
        """Of several filters one must hold."""
        assert await self.selected(images, "name==a", "labels.bar", "name==a,labels.bar", "nonsense") == "a b"
        assert await self.selected(images, *(f"name=={name}" for name in (*LABELS, "x", "y"))) == "a b c d foo fooer"
        assert await self.selected(images, "name==a", "") == "a b c d foo fooer"

    @pytest.mark.parametrize("noun", ["images", "containers", "leases"])
    async def test_refused(self, metadata: Services, noun: str) -> None:
        """What is no filter is refused by every list, wherever it stands among filters."""
        calls: Callable[..., Coroutine[Any, Any, Any]] = getattr(metadata, noun).list
        for text in REFUSED:
            for filters in ([text], ["labels.foo", text]):
                with pytest.raises(InvalidArgument):
                    await calls(filters)

    async def test_made_up(self, images: Services) -> None:
        """Of filters made up at random each selects the same as in the process of the test, or is refused there too."""
        everything = await images.images.list()
        choose = random.Random(3)
        for _ in range(200):
            text = made_up(choose)
            try:
                matches = matcher([text], fields)
            except InvalidArgument:
                with pytest.raises(InvalidArgument):
                    await images.images.list([text])
                continue
            expected = " ".join(sorted(image.name for image in everything if matches(image)))
            assert (text, await self.selected(images, text)) == (text, expected)
