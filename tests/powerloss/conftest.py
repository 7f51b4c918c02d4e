"""What the tests of lost power share."""

from collections.abc import Iterator

import pytest

from support.forked import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made
