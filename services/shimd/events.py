"""Events on their way to taskd or containerd: one after the other, in order, again and again until they are taken.

The queue is bounded: when nobody takes events for long, the oldest are lost.
"""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from carina.errors import CarinaError, ResourceExhausted, Unavailable
from shimd import journal
from shimd.loop import Loop
from shimd.messages import EVENTS, FORWARD, timestamp
from shimd.ttrpc import Client
from shimd.wire import encode

_SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
_KEPT: Final = 20_000
_SECONDS: Final = 10.0
_TRIES: Final = 5
_LONGEST_PAUSE: Final = 5.0


class Publisher:
    def __init__(self, loop: Loop, path: str, *, namespace: str) -> None:
        self._loop = loop
        self._client = Client(loop, path)
        self._namespace = namespace
        self._queue: deque[tuple[str, bytes]] = deque()
        self._sending = False

    @property
    def idle(self) -> bool:
        return not self._queue

    def publish(self, topic: str, values: Mapping[str, Any]) -> None:
        """Queue an event that happens now."""
        name, schema = EVENTS[topic]
        envelope = {
            "timestamp": timestamp(time.time_ns()),
            "namespace": self._namespace,
            "topic": topic,
            "event": {"type_url": f"containerd.events.{name}", "value": encode(schema, values)},
        }
        if len(self._queue) >= _KEPT:
            lost, _ = self._queue.popleft()
            journal.write("warning", f"event {lost} is lost: {_KEPT} wait already")
        self._queue.append((topic, encode(FORWARD, {"envelope": envelope})))
        if not self._sending:
            self._sending = True
            self._loop.spawn(self._send(), "send events")

    async def _send(self) -> None:
        tries, pause = 0, 0.05
        while self._queue:
            topic, message = head = self._queue[0]
            try:
                await self._client.call(_SERVICE, "Forward", message, seconds=_SECONDS)
            except CarinaError as error:
                if not isinstance(error, Unavailable | ResourceExhausted):
                    tries += 1
                if tries < _TRIES:
                    await self._loop.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                journal.write("warning", f"event {topic} is lost: {error}")
            tries, pause = 0, 0.05
            if self._queue and self._queue[0] is head:
                self._queue.popleft()
        self._sending = False
