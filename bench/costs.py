"""What a command costs a peer and its client: time, processor time, memory."""

import os
import resource
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Final, Self

from bench import peers
from bench.peers import Peer

_SECONDS: Final = 900


def cost(peer: Peer, command: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds, with nothing waiting to be written when it begins."""
    os.sync()
    before = peers.processor_seconds(peer.pids()) + _children()
    seconds = peers.timed(lambda: run(command))
    used = peers.processor_seconds(peer.pids()) + _children() - before
    if os.environ.get("BENCH_VERBOSE"):
        print(
            f"{peer.name}: {seconds:.1f} s, {used:.1f} s of processor time, load {os.getloadavg()[0]:.1f}", flush=True
        )
    return seconds, used


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Peak:
    """The most memory that processes had at any of many moments of the block."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch memory")
        self.value = 0.0
        """MiB, as PSS."""

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            try:
                self.value = max(self.value, peers.pss(self._pids()))
            except (FileNotFoundError, ProcessLookupError, StopIteration):
                continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=_SECONDS)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)}: {done.stderr.strip()}")
