"""Channels that nothing new is called on: each is closed once nothing is under way on it any more."""

import asyncio
from typing import Final

from carina.rpc.client import Channel

PAUSE_SECONDS: Final = 5.0


class Retired:
    def __init__(self) -> None:
        self._channels: set[Channel] = set()

    def add(self, channel: Channel, name: str, tasks: asyncio.TaskGroup | None) -> None:
        """Have a channel closed; without tasks, not before everything is."""
        self._channels.add(channel)
        if tasks is not None:
            tasks.create_task(self._wait(channel), name=f"retire {name}")

    async def _wait(self, channel: Channel) -> None:
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            if not channel.in_flight:
                break
        self._channels.discard(channel)
        channel.close()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
