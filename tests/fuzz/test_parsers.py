"""Every parser that meets foreign bytes reads them or refuses them by an error of its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.mutation import near
from fuzz.parsers import PARSERS, TOKENS, seeds

EXAMPLES = 25


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus_is_read_or_refused(name: str) -> None:
    """What the corpus holds, the usual and what once was trouble, is read or refused."""
    parser = PARSERS[name]
    read = 0
    for data in seeds(name):
        try:
            parser.read(data)
            read += 1
        except parser.refuses:
            pass
    assert read > 0


@pytest.mark.parametrize("name", PARSERS)
def test_bytes_near_the_corpus_are_read_or_refused(name: str) -> None:
    """Nothing that is changed, cut off or put in makes a parser fail otherwise; `make fuzz` tries many more."""
    parser = PARSERS[name]

    @settings(max_examples=EXAMPLES, derandomize=True, database=None)
    @given(st.data())
    def run(choice: st.DataObject) -> None:
        data = choice.draw(near(seeds(name), TOKENS))
        try:
            parser.read(data)
        except parser.refuses:
            pass

    run()
