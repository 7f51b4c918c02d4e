"""One constellation and one registry for all tests of a session that leave them as they were."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image
from support.constellation import Constellation
from support.registry import Registry


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder runs whole constellations."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def reference(registry: Registry) -> str:
    """A small image of two layers, busybox and a file, in the registry."""
    return registry.push("test/busybox", "1.0", image.build())


@pytest.fixture(scope="session")
def shared() -> Iterator[Constellation]:
    with Constellation() as running:
        yield running


@pytest.fixture
def constellation(shared: Constellation) -> Iterator[Constellation]:
    """The shared constellation; what a test made in its namespace is removed after it."""
    yield shared
    shared.clean_namespace()


@pytest.fixture
def pulled(constellation: Constellation, reference: str) -> str:
    """The image, pulled by `ctr` itself."""
    constellation.ctr("images", "pull", "--plain-http", reference)
    return reference
