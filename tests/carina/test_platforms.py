"""Platforms: one spelling for each, and what runs on what."""

import pytest

from carina.errors import InvalidArgument
from carina.platforms import Matcher, Platform, best, host, runs


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("linux/amd64/v1", "linux/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("s390x", f"{host().os}/s390x"),
    ],
)
def test_every_spelling_becomes_one(text: str, normal: str) -> None:
    """Other spellings in use are read as the one that images have."""
    assert str(Platform.parse(text)) == normal


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/am d64", "plan9x", "linux/../x"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    """Text that names neither a system nor an architecture is an error."""
    with pytest.raises(InvalidArgument):
        Platform.parse(text)


def test_machines_run_what_older_ones_did() -> None:
    """arm/v7 runs v6 and v5, arm64 the 32-bit variants, amd64 the 386, and none the other way round."""
    assert [str(one) for one in runs(Platform.parse("linux/arm/v7"))] == [
        *("linux/arm/v7", "linux/arm/v6", "linux/arm/v5")
    ]
    assert Platform.parse("linux/arm/v7") in runs(Platform.parse("linux/arm64"))
    assert Platform.parse("linux/386") in runs(Platform.parse("linux/amd64"))
    assert Platform.parse("linux/amd64") not in runs(Platform.parse("linux/386"))
    assert not Matcher.only(Platform.parse("linux/amd64")).matches(Platform.parse("linux/amd64/v3"))
    assert Matcher.only(Platform.parse("linux/amd64/v3")).matches(Platform.parse("linux/amd64/v2"))


def test_the_best_of_several_is_chosen() -> None:
    """An exact match comes first; without wishes the first candidate is taken; unknown is never matched."""
    candidates = [Platform.parse(text) for text in ("linux/arm/v6", "linux/386", "linux/arm/v7")]

    assert best(candidates, Matcher.only(Platform.parse("linux/arm/v7"))) == 2
    assert best(candidates, Matcher.only(Platform.parse("linux/amd64"))) == 1
    assert best(candidates, Matcher.only(Platform.parse("linux/s390x"))) is None
    assert best(candidates, Matcher()) == 0
    assert not Matcher.only(host()).matches(Platform(os="unknown", architecture="unknown"))
