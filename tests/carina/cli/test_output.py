"""What the command line prints, and how it reads labels and mounts."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner

from carina.cli import output
from carina.cli.__main__ import carina
from carina.cli.snapshots import tree_lines
from carina.cli.wishes import _mount
from carina.errors import InvalidArgument
from carina.snapshots import Info, Kind


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    """Bytes come in the largest binary unit that leaves at least one."""
    assert output.size(count) == text


def test_moments_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has times as RFC 3339 writes them."""
    output.as_json({"at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)})
    assert json.loads(capsys.readouterr().out) == {"at": "2026-01-02T03:04:05+00:00"}


def test_digest_cut_short_is_no_ingest() -> None:
    """`gc why` says of half a digest that it is none, and asks nobody for an ingest of that name."""
    answer = CliRunner().invoke(carina, ["--address", "unix:///nowhere.sock", "gc", "why", "sha256:06e163"])
    assert isinstance(answer.exception, InvalidArgument)
    assert "sha256:06e163" in str(answer.exception)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59.4, "59s"), (60, "1m0s"), (3725, "1h2m"), (90000, "1d1h")]
)
def test_durations(seconds: float, text: str) -> None:
    """The two largest units are shown, and a clock that went back is no age at all."""
    assert output.duration(seconds) == text


def test_ages() -> None:
    """An age is that of the moment; none is a dash."""
    assert output.age(None) == "-"
    assert output.age(datetime.now(UTC) - timedelta(hours=3)) == "3h0m"


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their longest cell, and no line ends in spaces."""
    output.table(("A", "LONG"), [("wide cell", 1), ("x", "")])
    assert capsys.readouterr().out == "A          LONG\nwide cell  1\nx\n"


def test_strangers_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences and line ends in labels and names are shown, not sent."""
    output.names(["a\x1b[2Jb\nc\x9bd é"])
    output.table(("L",), [(output.labels({"k": "\x1b]0;t\x07"}),)])
    assert capsys.readouterr().out == "a\\x1b[2Jb\\nc\\x9bd é\nL\nk=\\x1b]0;t\\x07\n"


def test_labels() -> None:
    """Labels are KEY=VALUE; the value may hold `=` or be empty."""
    assert output.parse_labels(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    assert output.labels({"b": "2", "a": "1"}) == "a=1,b=2"
    assert output.labels({}) == "-"
    for word in ("a", "=1", ""):
        with pytest.raises(click.UsageError, match="KEY=VALUE"):
            output.parse_labels([word])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("src=/a,dst=/b", ("bind", "/a", "/b", ["rbind"])),
        ("type=bind,src=/a,dst=/b,options=bind:ro", ("bind", "/a", "/b", ["bind", "ro"])),
        ("type=bind,source=/a,destination=/b,options=ro", ("bind", "/a", "/b", ["rbind", "ro"])),
        ("type=tmpfs,dst=/t,options=size=1m", ("tmpfs", "", "/t", ["size=1m"])),
    ],
)
def test_mounts(text: str, expected: tuple[Any, ...]) -> None:
    """A mount is read as ctr reads it; a bind mount is one without being told twice."""
    made = _mount(text)
    assert (made["type"], made["source"], made["destination"], made["options"]) == expected


@pytest.mark.parametrize("text", ["src=/a", "src=/a,dst=b", "sorce=/a,dst=/b", ""])
def test_mounts_that_cannot_be(text: str) -> None:
    """A misspelt key and a destination that is not absolute are wrong usage."""
    with pytest.raises(click.UsageError, match="--mount"):
        _mount(text)


def snapshot(name: str, parent: str = "", kind: Kind = Kind.COMMITTED) -> Info:
    return Info(name=name, parent=parent, kind=kind)


def test_the_tree_of_snapshots() -> None:
    """Children stand below their parent, in order; what can be written is marked."""
    found = [snapshot("a"), snapshot("b", "a"), snapshot("c", "a", Kind.ACTIVE), snapshot("d", "b")]
    assert list(tree_lines(found)) == ["a", "  └ b", "    └ d", "  └ c  (active)"]


def test_the_tree_of_a_faulty_back_end() -> None:
    """Snapshots without their parent, and those of a cycle, are shown once each, and the tree ends."""
    found = [snapshot("orphan", "gone"), snapshot("x", "y"), snapshot("y", "x"), snapshot("self", "self")]
    assert list(tree_lines(found)) == ["orphan", "x", "  └ y", "self"]
