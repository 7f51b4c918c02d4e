"""What a registry asks for in WWW-Authenticate headers, and the scopes of tokens.

A scope is `TYPE:NAME:ACTIONS`, as in `repository:library/busybox:pull,push` (distribution's token specification).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

MAX_LENGTH: Final = 8192
"""Characters of one header that are looked at."""
MAX_HEADERS: Final = 16
_PART: Final = re.compile(r"""[\s,]*([A-Za-z0-9!#$%&'*+.^_`|~/-]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?""")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    scheme: str
    """In lower case."""
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Read WWW-Authenticate headers (RFC 9110, section 11.6.1). What can't be read is left out."""
    challenges: list[Challenge] = []
    for header in headers[:MAX_HEADERS]:
        current: Challenge | None = None
        at = 0
        while found := _PART.match(header, at, min(len(header), MAX_LENGTH)):
            at = found.end()
            name, quoted, bare = found.groups()
            if quoted is None and bare is None:
                current = Challenge(scheme=name.lower())
                challenges.append(current)
            elif current is not None:
                current.parameters.setdefault(name.lower(), _ESCAPED.sub(r"\1", quoted) if quoted is not None else bare)
    return challenges


def merged(scopes: Iterable[str]) -> list[str]:
    """Scopes without repetition: the actions of one resource stand together."""
    found: dict[str, set[str]] = {}
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        found.setdefault(resource, set()).update(action for action in actions.split(",") if action)
    return [
        f"{resource}:{','.join(sorted(actions))}" if resource else ",".join(actions)
        for resource, actions in found.items()
    ]
