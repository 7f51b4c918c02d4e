"""docs/reliability.md: written from results and from tests that are there."""

import re

import pytest

from support.storm.cases import CASES, TESTS, Case, where
from support.storm.report import DOCUMENT, document, load


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"T{case.number}")
def test_each_known_attack_has_a_test_or_a_reason(case: Case) -> None:
    """Of every known way to hurt a container runtime a test shows that it does not work, or it is said why not."""
    assert bool(case.why_not) != any(name in where() for name in case.tests)


def test_every_test_that_the_document_names_is_there() -> None:
    """Whoever looks for a test that the document names finds it in the file that it names."""
    named = re.findall(r"`([\w/]+\.py)`: `(test_\w+)`", DOCUMENT.read_text())
    assert len(named) > len([case for case in CASES if case.tests]) - 1
    assert [one for one in named if f"def {one[1]}(" not in (TESTS / one[0]).read_text()] == []


def test_the_tables_are_those_of_the_results() -> None:
    """Nobody writes figures by hand."""
    faults = document().partition("## Known attacks")[0]
    assert load()["carina"] != []
    assert DOCUMENT.read_text().partition("## Known attacks")[0] == faults
