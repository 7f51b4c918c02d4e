"""The content suite on the metadata service's view, over sockets on both sides, under both policies."""

from collections.abc import AsyncIterator

import pytest

from carina import context
from carina.content import ContentStore
from conformance.content_suite import ContentSuite, LaneSuite
from support.content import directory
from support.views import view


class TestShared(ContentSuite, LaneSuite):
    @pytest.fixture
    async def store(self) -> AsyncIterator[ContentStore]:
        with directory() as path:
            async with view(path) as service:
                with context.within(namespace="one"):
                    yield service.content


class TestIsolated(ContentSuite, LaneSuite):
    @pytest.fixture
    async def store(self) -> AsyncIterator[ContentStore]:
        with directory() as path:
            async with view(path, shared=False) as service:
                with context.within(namespace="one"):
                    yield service.content
