"""`carina events`: from any place in the log, for people and for programs."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carina import context
from carina.cli.events import parse_start
from carina.errors import InvalidArgument
from carina.events import Cursor, Edge
from carina.namespaces import Namespace
from support.metadata import Stores, stores


class Service:
    def __init__(self, address: str, metadata: Stores) -> None:
        self.metadata = metadata
        self._command = [sys.executable, "-m", "carina.cli", "--address", address, "events"]

    async def events(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, output and errors of the command."""
        process = await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), error.decode()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with stores(tmp_path, "socket") as metadata:
        with context.within(namespace="test"):
            for name in ("one", "two", "three"):
                await metadata.namespaces.create(Namespace(name=name))
        yield Service(f"unix://{tmp_path}/metadatad.sock", metadata)


async def test_what_has_happened(service: Service) -> None:
    """Without following, the command prints all that is kept and ends; filters select."""
    status, output, _ = await service.events("--no-follow")
    assert status == 0
    assert [line.split()[1:3] for line in output.splitlines()] == [
        ["one", "/namespaces/create"],
        ["two", "/namespaces/create"],
        ["three", "/namespaces/create"],
    ]
    assert '"name": "two"' in (await service.events("--no-follow", "event.name==two"))[1]


async def test_json_has_cursors_to_go_on_from(service: Service) -> None:
    """Each line of JSON has the cursor that the command takes as the place to begin."""
    _, output, _ = await service.events("--no-follow", "--format", "json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["event"]["name"] for line in lines] == ["one", "two", "three"]

    for since in (lines[1]["cursor"], "2"):
        _, output, _ = await service.events("--no-follow", "--format", "json", "--since", since)
        assert [json.loads(line) for line in output.splitlines()] == lines[2:]


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        ("yesterday", "no place in the log"),
        ("9", "event 9 has not come yet"),
        ("0123456789abcdef:2", "is not of this log"),
    ],
)
async def test_places_that_are_none(service: Service, since: str, reason: str) -> None:
    """What is no place in this log is refused with one sentence."""
    status, output, error = await service.events("--no-follow", "--since", since)
    assert (status, output) == (1, "")
    assert reason in error
    assert len(error.splitlines()) == 1


def test_places() -> None:
    """A place is a number, a cursor, a duration, a moment or the oldest."""
    assert parse_start("oldest") is Edge.OLDEST
    assert parse_start("42") == Cursor(sequence=42)
    assert parse_start("00ff:42") == Cursor(log="00ff", sequence=42)
    assert parse_start("2026-01-02T03:04:05+01:00") == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)
    ago = parse_start("1d2h3m4s")
    assert isinstance(ago, datetime)
    assert abs(datetime.now(UTC) - ago - timedelta(days=1, hours=2, minutes=3, seconds=4)) < timedelta(seconds=10)
    for wrong in ("", "1x", "-1", "00ff:", "2026-13-01"):
        with pytest.raises(InvalidArgument):
            parse_start(wrong)
