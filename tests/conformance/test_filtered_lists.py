"""The filter suite on ours, direct and over a socket, and on a real containerd."""

import pytest

from carina.errors import InvalidArgument
from conformance.filters_suite import REFUSED, FilterSuite
from support.metadata import Services, Stores


class TestLocal(FilterSuite):
    @pytest.fixture
    def metadata(self, local_stores: Stores) -> Services:
        return local_stores


class TestRemote(FilterSuite):
    @pytest.fixture
    def metadata(self, remote_stores: Stores) -> Services:
        return remote_stores


@pytest.mark.root
class TestContainerd(FilterSuite):
    """containerd 1.6, where Debian's package has that."""

    @pytest.fixture
    def metadata(self, containerd_services: Services) -> Services:
        return containerd_services


async def test_sandboxes(local_stores: Stores) -> None:
    """The list of sandboxes refuses what is no filter, too."""
    for text in REFUSED:
        with pytest.raises(InvalidArgument):
            await local_stores.sandboxes.list([text])


async def test_expression_that_is_none(local_stores: Stores) -> None:
    """An expression that is none is refused (in containerd it selects nothing)."""
    for text in ("name~=*", "name~=[ab", "name~=/(/"):
        with pytest.raises(InvalidArgument, match="is no regular expression"):
            await local_stores.images.list([text])
