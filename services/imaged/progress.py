"""What a transfer tells of itself: one line of steps per piece of content, never more than a few a second."""

import time
from collections import defaultdict
from typing import Final

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.images import manifest
from carina.transfer import OnProgress, Progress

INTERVAL: Final = 0.3
"""Seconds between two steps of the same kind for the same content."""


def ref_key(descriptor: Descriptor) -> str:
    """The ref under which content is ingested, the same one that containerd's client uses, so that each resumes
    what the other began."""
    if manifest.is_manifest(descriptor.media_type):
        kind = "manifest"
    elif manifest.is_index(descriptor.media_type):
        kind = "index"
    elif manifest.is_layer(descriptor.media_type):
        kind = "layer"
    elif manifest.is_config(descriptor.media_type):
        kind = "config"
    else:
        kind = "unknown"
    return f"{kind}-{descriptor.digest}"


class Tracker:
    """Calls `on_progress` for one transfer; does nothing without it."""

    def __init__(self, root: str, on_progress: OnProgress | None) -> None:
        self._root = root
        self._on_progress = on_progress
        self._parents: dict[Digest, list[str]] = defaultdict(list)
        self._last: dict[Digest, float] = {}

    def say(self, event: str, *, name: str = "", descriptor: Descriptor | None = None) -> None:
        if self._on_progress:
            self._on_progress(Progress(event=event, name=name, descriptor=descriptor))

    def children(self, parent: Descriptor, children: tuple[Descriptor, ...]) -> None:
        if self._on_progress:
            for child in children:
                self._parents[child.digest].append(ref_key(parent))

    def step(self, event: str, descriptor: Descriptor, progress: int | None = None) -> None:
        """A step that must be seen; `progress` is all of it unless given."""
        if self._on_progress:
            self._on_progress(
                Progress(
                    event=event,
                    name=ref_key(descriptor),
                    parents=tuple(self._parents.get(descriptor.digest, [])) or (self._root,),
                    progress=descriptor.size if progress is None else progress,
                    total=descriptor.size,
                    descriptor=descriptor,
                )
            )

    def moved(self, event: str, descriptor: Descriptor, progress: int) -> None:
        """A step that may be left out where one was told just before."""
        if self._on_progress:
            now = time.monotonic()
            if now - self._last.get(descriptor.digest, 0.0) >= INTERVAL:
                self._last[descriptor.digest] = now
                self.step(event, descriptor, progress)
