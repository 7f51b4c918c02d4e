"""Lists: tables, JSON, templates, names; and tables on terminals that are too narrow."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
import pytest
from click.testing import CliRunner

from carina.cli import listing
from carina.cli.narrow import fit
from carina.cli.parameters import Duration

ROWS: Sequence[dict[str, Any]] = (
    {"name": "one", "size": 2048, "labels": {"b": "2", "a": "1"}, "created_at": datetime(2026, 1, 2, tzinfo=UTC)},
    {"name": "tw\x1b[31mo", "size": 0, "labels": {}, "created_at": None},
)
COLUMNS: dict[str, listing.Column] = {"NAME": "name", "LABELS": "labels"}


def printed(text: str, *, quiet: bool = False) -> str:
    @click.command()
    @listing.options
    def command(form: listing.Form) -> None:
        listing.show(form, ROWS, columns=COLUMNS, name="name")

    done = CliRunner().invoke(command, ["--format", text, *(["-q"] if quiet else [])], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.output


def test_forms() -> None:
    """The same rows as a table, names, and JSON; a stranger's text steers no terminal."""
    assert printed("table") == "NAME         LABELS\none          a=1,b=2\ntw\\x1b[31mo  -\n"
    assert printed("table", quiet=True) == "one\ntw\\x1b[31mo\n"
    found = json.loads(printed("json"))
    assert [row["size"] for row in found] == [2048, 0]
    assert found[0]["created_at"] == "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{name}}", "one"),
        ("{{.Name}}\t{{.size|size}}", "one\t2.0 KiB"),
        ("{{CreatedAt}}", "2026-01-02T00:00:00+00:00"),
        ("{{labels|tojson}}", '{"a": "1", "b": "2"}'),
        ("{% if size %}{{row.name}}{% endif %}", "one"),
    ],
)
def test_templates(template: str, line: str) -> None:
    """A template sees the fields that JSON shows, spelled as people are used to."""
    assert printed(template).splitlines()[0] == line


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{nam}}", "'nam' is undefined: expected created_at, labels, name, size"),
        ("{{name", "unexpected end of template"),
        ("{{name.__class__.__mro__}}", "unsafe"),
        ("csv", "'csv' is not a format: expected table, json, or a template"),
    ],
)
def test_templates_that_are_none(template: str, sentence: str) -> None:
    """What can't be printed is refused with the fields that there are, and no template gets at our insides."""
    with pytest.raises(click.UsageError, match=sentence.partition(":")[0]) as raised:
        printed(template)
    assert sentence in raised.value.format_message()


def test_narrow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal digests lose digits first, and nothing else is cut."""
    monkeypatch.setenv("COLUMNS", "44")
    fit(("DIGEST", "LABELS"), [("sha256:" + "ab" * 32, "a-rather-long-label=with-a-rather-long-value")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 44
    assert lines[1].startswith("sha256:abababababab ")
    assert "".join(line.split()[-1] for line in lines[1:]).endswith("rather-long-value")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("1h30m", 5400.0), ("500ms", 0.5), ("24h0m0s", 86400.0)])
def test_durations(text: str, seconds: float) -> None:
    """Durations are Go's, or numbers."""
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "1x", "-1", "h", "1e999", "nan"])
def test_durations_that_are_none(text: str) -> None:
    """Whatever else is refused."""
    with pytest.raises(click.BadParameter, match="is not a duration"):
        Duration().convert(text, None, None)
