"""containerd's filter grammar."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carina.errors import InvalidArgument
from carina.filters import Adaptor, adaptor, compile, exact, parse

CORPUS = {
    "a": {"name": "foo", "labels": {"foo": "true"}},
    "b": {"name": "bar", "labels": {}},
    "c": {"name": "foo", "labels": {"foo": "present", "more complex label": "present"}},
    "d": {"name": "bar", "labels": {"bar": "true"}},
    "e": {"name": "fooer", "labels": {'with \\ and "': "present"}},
    "f": {"name": "fooer", "labels": {'with \\ and ".post': "present"}},
    "g": {"name": "baz", "other": "too complex, yo", "labels": {}},
    "h": {"name": "bazo", "other": "abc", "labels": {}},
    "i": {"name": "compound", "labels": {"foo": "omg_asdf.asdf-qwer", "a.b/c": "1"}},
}
ADAPTORS: dict[str, Adaptor] = {key: adaptor(fields) for key, fields in CORPUS.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "abcdefghi"),
        ("name", "abcdefghi"),
        ("other", "gh"),
        ("labels.foo", "aci"),
        ("labels.foo,name", "aci"),
        ("labels.foo==true", "a"),
        ("labels.foo == true", "a"),
        ("labels.foo==omg_asdf.asdf-qwer", "i"),
        ("name==bar", "bd"),
        ("name!=bar", "acefghi"),
        ("labels.foo!=true", "bcdefghi"),
        ("name==bar,labels.bar", "d"),
        ('other=="too complex, yo"', "g"),
        ("other~=[abc]+,name!=foo", "gh"),
        ("other~=/[abc]{1,2}/,name!=foo", "gh"),
        ("other~=|^abc$|", "h"),
        ('other~=/[abc]{0,1}"\\//,name!=foo', ""),
        ("name==bar,labels.bar==wrong", ""),
        ('name==foo,labels."more complex label"', "c"),
        ('labels."with \\\\ and \\""==present', "e"),
        ('labels."with \\\\ and \\"".post==present', "f"),
        ('labels."a.b/c"==1', "i"),
        ('name=="\\x66\\157\\u006f"', "ac"),
        ("name~=^foo$", "ac"),
        ("nonsense", ""),
        ("labels", ""),
    ],
)
def test_matches(text: str, expected: str) -> None:
    """Each form of the grammar selects what it selects in containerd."""
    matches = compile([text])
    assert "".join(key for key, each in ADAPTORS.items() if matches(each)) == expected


def test_alternatives() -> None:
    """Of several filters one must hold; without filters everything matches."""
    either = compile(["name==foo", "name==baz"])
    assert "".join(key for key, each in ADAPTORS.items() if either(each)) == "acg"
    assert compile([])(ADAPTORS["a"])


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("name=foo", 4),
        ("name==foo,", 10),
        ("labels.", 7),
        ("labels.|foo|==x", 7),
        ('labels.?"x"', 7),
        ("image~=,id", 7),
        ("labels.ns/key==value", 9),
        ("labels.key==/value", 12),
        ("labels.key==/value/", 12),
        ('labels."\\g"', 7),
        ('labels."\\xaz"', 7),
        ('labels."a\nb"', 7),
        ("name==a b", 7),
        ("name==foo ", 9),
        ("foo\0bar", 3),
        ('name=="a\0"', 8),
        ("name~=(", 6),
        ("name~=a(?=b)", 6),
        (",", 0),
        ("==x", 0),
    ],
)
def test_refusals(text: str, position: int) -> None:
    """What is no filter is refused with the position of the mistake."""
    with pytest.raises(InvalidArgument, match=f"at position {position}:"):
        parse(text)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], None),
        (["name==a"], ["a"]),
        (["name==b,labels.x", "labels.y,name==a"], ["a", "b"]),
        (["name==a", "labels.x"], None),
        (["name~=a"], None),
        (["name!=a"], None),
        ([""], None),
        (["name.x==a"], None),
    ],
)
def test_exact_values(filters: list[str], expected: list[str] | None) -> None:
    """Where every filter asks for a value of a field, those values can be looked up."""
    assert exact(filters, "name") == expected


def test_pathological_expression_is_harmless() -> None:
    """An expression that makes backtracking engines run for ages takes no time."""
    matches = compile(["name~=(a+)+$"])
    start = time.monotonic()
    assert not matches(adaptor({"name": "a" * 50_000 + "b"}))
    assert time.monotonic() - start < 20


def test_oversized_is_refused() -> None:
    """Filters are bounded in length."""
    with pytest.raises(InvalidArgument, match="longer"):
        compile(["name==" + "x" * 70_000])


def test_many_values_are_looked_up_together() -> None:
    """A list of thousands of names takes no longer for each object than a short one."""
    matches = compile([f"name==name-{number}" for number in range(3000)])
    assert matches(adaptor({"name": "name-2999"}))
    start = time.monotonic()
    assert not any(matches(adaptor({"name": f"other-{number}"})) for number in range(20_000))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("filters", "what"),
    [
        (["name!=a"] * 1001, "1001 selectors"),
        ([",".join(["name!=a"] * 1001)], "1001 selectors"),
        ([f"name~=a{number}" for number in range(65)], "65 regular expressions"),
    ],
)
def test_too_many_are_refused(filters: list[str], what: str) -> None:
    """What every object is held against is bounded in number."""
    with pytest.raises(InvalidArgument, match=what):
        compile(filters)


@pytest.mark.parametrize(
    "expression",
    [
        "(x+x+)+y",
        "(.*)*" * 50 + "y",
        "((((((((((x?){20}){20})?)*)*)*)*)*)*)y",
        "x{1000}" * 60,
        "(x{30}){30}y",
        "[^y]{50}" * 50,
        "(x|xx)*" * 100 + "y",
        "(" * 5000 + ")" * 5000,
        "(?:" * 900 + "x" + ")*" * 900,
        "(.?){500}(.){500}y",
        "\\pL*" * 500,
    ],
)
def test_heavy_expressions(expression: str) -> None:
    """An expression made to be heavy is refused or takes little time and memory."""
    quoted = expression.replace("\\", "\\\\")
    start = time.monotonic()
    try:
        matches = compile([f'name~="{quoted}"'])
    except InvalidArgument:
        return
    for _ in range(5):
        matches(adaptor({"name": "x" * 4096}))
    assert time.monotonic() - start < 30


ATOMS = st.sampled_from(
    [
        *'abé0_-.,=!~/|"\\^$()[]*+? \t\n',
        "name",
        "labels",
        "==",
        "!=",
        "~=",
        '"a.b/c"',
        "\\x61",
        "\\u00e9",
        "{1}",
        "(?i)",
    ]
)


@given(st.lists(ATOMS, max_size=30).map("".join))
def test_any_pieces_are_parsed_or_refused(text: str) -> None:
    """Whatever is put together from pieces of the grammar is a filter or an InvalidArgument that shows it."""
    try:
        compile([text])(ADAPTORS["i"])
    except InvalidArgument as error:
        assert "is not valid at position" in str(error)  # noqa: PT017


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Whatever the text, it is a filter or an InvalidArgument."""
    try:
        compile([text])(ADAPTORS["i"])
    except InvalidArgument:
        pass


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_value_can_be_quoted(value: str) -> None:
    """Every value that is text can be asked for when quoted as Go does."""
    quoted = "".join(f"\\U{ord(character):08x}" for character in value)
    assert compile([f'name=="{quoted}"'])(adaptor({"name": value}))
