"""What of the API the tests call: `make compatibility` runs suites with this, and the documentation is made of it.

With CARINA_RECORD=DIRECTORY in the environment, each process of pytest leaves a file there with the methods that tests
which passed called from the test's process, by file, and apart those that were called at a real containerd.
What unmodified clients call (`ctr`, dockerd) is not seen.
"""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest

from carina.rpc.client import Channel

PREFIX: Final = "/containerd.services."


class Recorder:
    """A plugin of pytest."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._calls: dict[str, set[str]] = defaultdict(set)
        self._current: set[str] = set()
        request = Channel.request

        def recorded(channel: Channel, name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith(PREFIX):
                self._current.add(name)
            return request(channel, name, *args, **kwargs)

        Channel.request = recorded  # type: ignore[method-assign, assignment]

    @pytest.hookimpl
    def pytest_runtest_setup(self) -> None:
        self._current.clear()

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or not report.passed or hasattr(report, "wasxfail"):
            return
        file, _, rest = report.nodeid.partition("::")
        kind = "containerd" if "ontainerd" in rest or "foreign" in rest else "carina"
        for method in self._current:
            self._calls[method].add(f"{kind} {file}")

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        found = {method: sorted(where) for method, where in self._calls.items()}
        (self._directory / f"{os.getpid()}.json").write_text(json.dumps(found))
