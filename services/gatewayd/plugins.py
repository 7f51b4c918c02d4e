"""The plugins of the whole constellation: each service describes its own, the gateway puts them together."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from carina import context
from carina.errors import CarinaError
from carina.filters import matcher
from carina.introspection import Plugin
from carina.introspection.fields import fields
from gatewayd import routes
from gatewayd.upstream import Upstream

TYPE: Final = "io.containerd.grpc.v1"
ANSWER_SECONDS: Final = 2.0
"""How long one service may take to describe itself."""


class MergedIntrospection:
    """`Introspection` of several services and of the gateway itself.

    A service that does not answer leaves its error at its plugins, as last known, and at those that clients reach
    through it. One that was silent when it was last looked after is not waited for.
    """

    def __init__(self, parts: Mapping[str, Upstream]) -> None:
        self._parts = parts

    async def plugins(self, filters: Sequence[str] = ()) -> Sequence[Plugin]:
        matches = matcher(filters, fields)
        answers = dict(zip(self._parts, await asyncio.gather(*(map(_ask, self._parts.values()))), strict=True))
        found: dict[tuple[str, str], Plugin] = {}
        for plugin in [*(own for answer, _ in answers.values() for own in answer), *_own(answers)]:
            found.setdefault((plugin.type, plugin.id), plugin)
        return [found[key] for key in sorted(found) if matches(found[key])]


async def _ask(part: Upstream) -> tuple[Sequence[Plugin], str]:
    """A service's plugins, and what was wrong with asking."""
    error = part.silence
    if not error:
        try:
            with context.deadline(ANSWER_SECONDS):
                part.known = await part.introspection.plugins()
            return part.known, ""
        except CarinaError as caught:
            error = str(caught) or type(caught).__name__
    # What could be reached through it are the gateway's own plugins, which `_own` lists.
    return [replace(plugin, error=error) for plugin in part.known if plugin.type != TYPE], error


def _own(answers: Mapping[str, tuple[Sequence[Plugin], str]]) -> list[Plugin]:
    """The services of the API, each as sound as what stands behind it."""
    return [
        Plugin(type=TYPE, id=name, error=answers[daemon][1] if daemon is not None else "")
        for name, daemon in routes.PLUGINS.items()
    ]
