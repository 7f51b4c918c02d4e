"""What the suites have in common: a fixture for the implementation, and a list of its known differences."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from support.metadata import Services


class Suite:
    """A test module subclasses a suite for each implementation and overrides the fixture `metadata`."""

    differences: ClassVar[Mapping[str, str]] = {}
    """Tests that an implementation is known to fail, and why: each of them must fail."""

    @pytest.fixture(autouse=True)
    def known_difference(self, request: pytest.FixtureRequest) -> None:
        reason = self.differences.get(request.function.__name__)
        if reason is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture
    def metadata(self) -> Services:
        """The stores under test; the test runs in a namespace of its own."""
        raise NotImplementedError
