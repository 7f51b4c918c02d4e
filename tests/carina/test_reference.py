"""References: the distribution project's grammar, and Docker's short names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carina.errors import InvalidArgument
from carina.reference import Reference, normalize

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "domain", "repository", "object"),
    [
        ("docker.io/library/busybox:1.36", "docker.io", "library/busybox", "1.36"),
        (f"docker.io/library/busybox@{DIGEST}", "docker.io", "library/busybox", DIGEST),
        (f"localhost:5000/a/b_c/d--e:T.g-1@{DIGEST}", "localhost:5000", "a/b_c/d--e", DIGEST),
        ("[::1]:5000/a:1", "[::1]:5000", "a", "1"),
        ("registry/a:latest", "registry", "a", "latest"),
    ],
)
def test_full_references_are_taken_apart(text: str, domain: str, repository: str, object: str) -> None:
    """Domain, repository and object are found, and put together they are the text again."""
    found = Reference.parse(text)

    assert (found.domain, found.repository, found.object) == (domain, repository, object)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "busybox", "busybox:1", "docker.io/library/busybox", "docker.io/", "/a:1", "docker.io/A:1", "a.b/c:"),
        *("a.b/c@", "a.b/c@sha256:1", "a.b/c:-x", "a.b/../c:1", "a.b/c//d:1", "-a.b/c:1", "a.b:x/c:1", "a b/c:1"),
        *("a.b/" + "c" * 300 + ":1", "a.b/c:" + "t" * 200, "a.b/c:1\n", "http://a.b/c:1", "a.b/c:1@md5:00"),
    ],
)
def test_what_is_no_full_reference_is_refused(text: str) -> None:
    """The API takes complete references only."""
    with pytest.raises(InvalidArgument):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/user/app:2", "docker.io/user/app:2"),
        ("localhost/app", "localhost/app:latest"),
        ("host:5000/app", "host:5000/app:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
    ],
)
def test_short_names_are_completed(text: str, full: str) -> None:
    """What people type becomes what docker would make of it."""
    assert str(normalize(text)) == full


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """No text makes the parser fail in another way, and what it takes it writes the same."""
    for parse in (Reference.parse, normalize):
        try:
            found = parse(text)
        except InvalidArgument:
            continue
        assert Reference.parse(str(found)) == found
