"""The plugins of the whole constellation: each service describes its own, the gateway puts them together."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from carina import context
from carina.errors import CarinaError
from carina.filters import matcher
from carina.introspection import Introspection, Plugin
from carina.introspection.fields import fields
from gatewayd import routes

TYPE: Final = "io.containerd.grpc.v1"
ANSWER_SECONDS: Final = 2.0
"""How long one service may take to describe itself."""


class MergedIntrospection:
    """`Introspection` of several services and of the gateway itself.

    A service that does not answer leaves its error at the plugins that clients reach through it.
    """

    def __init__(self, parts: Mapping[str, Introspection]) -> None:
        self._parts = parts

    async def plugins(self, filters: Sequence[str] = ()) -> Sequence[Plugin]:
        matches = matcher(filters, fields)
        answers = dict(zip(self._parts, await asyncio.gather(*(map(_ask, self._parts.values()))), strict=True))
        found: dict[tuple[str, str], Plugin] = {}
        for plugin in [*(own for answer, _ in answers.values() for own in answer), *_own(answers)]:
            found.setdefault((plugin.type, plugin.id), plugin)
        return [found[key] for key in sorted(found) if matches(found[key])]


async def _ask(part: Introspection) -> tuple[Sequence[Plugin], str]:
    """A service's plugins, and what was wrong with asking."""
    try:
        with context.deadline(ANSWER_SECONDS):
            return await part.plugins(), ""
    except CarinaError as error:
        return (), str(error) or type(error).__name__


def _own(answers: Mapping[str, tuple[Sequence[Plugin], str]]) -> list[Plugin]:
    """The services of the API, each as sound as what stands behind it."""
    return [
        Plugin(type=TYPE, id=name, error=answers[daemon][1] if daemon is not None else "")
        for name, daemon in routes.PLUGINS.items()
    ]
