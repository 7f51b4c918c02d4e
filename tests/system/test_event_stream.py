"""`carina events` through the gateway while services are killed: what it prints has no hole and nothing twice."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from support.constellation import BIN, Constellation


def _pid(constellation: Constellation, daemon: str, *, after: int = 0) -> int:
    """The pid of a service once it is healthy, and another than `after`."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        lines = constellation.carina("status", *constellation.paths, check=False).output.splitlines()[1:]
        found = {fields[0]: int(fields[2]) for fields in map(str.split, lines) if fields[1] == "ok"}
        if found.get(daemon, after) != after:
            return found[daemon]
        time.sleep(0.05)
    raise AssertionError(f"{daemon} is not there: {constellation.log.read_text()[-3000:]}")


def _wait(path: Path, text: str) -> None:
    limit = time.monotonic() + 30
    while text not in path.read_text():
        assert time.monotonic() < limit, path.read_text()
        time.sleep(0.02)


def test_nothing_is_missed_while_services_are_killed(constellation: Constellation, tmp_path: Path) -> None:
    """The command goes on when metadatad or the gateway was killed, and prints each event once, in order."""
    output = tmp_path / "events"
    names = [f"carina-ev-{i}" for i in range(9)]
    command = [str(BIN / "carina"), "--address", constellation.address, "events", "--format", "json"]
    with output.open("wb") as file:
        begun = constellation.carina("events", "--no-follow", "--format", "json").output.splitlines()
        cursor = json.loads(begun[-1])["cursor"] if begun else "0"
        follower = subprocess.Popen([*command, "--since", cursor, 'topic=="/namespaces/create"'], stdout=file)
    try:
        for i, name in enumerate(names):
            constellation.ctr("namespaces", "create", name)
            if i % 3 == 2:
                _wait(output, names[i - 2])
                daemon = "metadatad" if i < 5 else "gatewayd"
                pid = _pid(constellation, daemon)
                os.kill(pid, signal.SIGKILL)
                _pid(constellation, daemon, after=pid)
        _wait(output, names[-1])
    finally:
        follower.terminate()
        follower.wait()
        for name in names:
            constellation.ctr("namespaces", "rm", name, check=False)
    printed = [json.loads(line) for line in output.read_text().splitlines()]

    assert [line["event"]["name"] for line in printed if line["event"]["name"] in names] == names
