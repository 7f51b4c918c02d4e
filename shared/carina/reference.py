"""References: the names of images in registries (the distribution project's grammar).

    docker.io/library/busybox:1.36@sha256:…
    └─domain─┘└──repository─┘ └tag┘ └digest┘

The API takes full references only, as containerd does; `normalize` completes Docker's short names for people.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from carina.digest import Digest
from carina.errors import InvalidArgument

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
MAX_NAME_LENGTH: Final = 255
MAX_LENGTH: Final = 1024

_LABEL: Final = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_DOMAIN: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[A-Fa-f0-9:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A parsed full reference."""

    domain: str
    """The registry as the reference names it: host, and port where one is given."""
    repository: str
    tag: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Domain and repository."""
        return f"{self.domain}/{self.repository}"

    @property
    def hostname(self) -> str:
        """The registry without its port: what `containerd.io/distribution.source.*` calls it."""
        return (
            self.domain.partition("]")[0].strip("[") if self.domain.startswith("[") else self.domain.partition(":")[0]
        )

    @property
    def object(self) -> str:
        """What to ask the registry for: the digest where there is one, the tag otherwise."""
        return str(self.digest) if self.digest else self.tag

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a full reference: a domain, a repository, and a tag or a digest.

        Raises:
            InvalidArgument: a part is missing or has characters that it can't have.
        """
        reference = cls._split(text)
        if not reference.object:
            raise InvalidArgument(f"reference {_shown(text)} is not complete: expected a tag or a digest at its end")
        return reference

    @classmethod
    def _split(cls, text: str) -> Self:
        if len(text) > MAX_LENGTH:
            raise InvalidArgument(f"reference {_shown(text)} is longer than {MAX_LENGTH} characters")
        rest, at, digest = text.partition("@")
        if at and not digest:
            raise InvalidArgument(f"reference {_shown(text)} is not valid: nothing follows the @")
        domain, slash, path = rest.partition("/")
        if not slash or not path:
            raise InvalidArgument(f"reference {_shown(text)} is not complete: expected REGISTRY/REPOSITORY:TAG")
        repository, colon, tag = path.partition(":")
        if _DOMAIN.fullmatch(domain) is None:
            raise InvalidArgument(f"reference {_shown(text)} is not valid: {_shown(domain)} is not a registry's host")
        if len(domain) + len(repository) >= MAX_NAME_LENGTH or REPOSITORY.fullmatch(repository) is None:
            raise InvalidArgument(f"reference {_shown(text)} is not valid: {_shown(repository)} is not a repository")
        if colon and _TAG.fullmatch(tag) is None:
            raise InvalidArgument(f"reference {_shown(text)} is not valid: {_shown(tag)} is not a tag")
        return cls(domain=domain, repository=repository, tag=tag, digest=Digest(digest) if digest else None)


def normalize(text: str) -> Reference:
    """Complete a name as people type it: `busybox` is `docker.io/library/busybox:latest`.

    Raises:
        InvalidArgument: no reference whichever way it is completed.
    """
    domain, slash, rest = text.partition("/")
    if not slash or (not set(".:") & set(domain) and domain != "localhost" and domain == domain.lower()):
        domain, rest = DEFAULT_DOMAIN, text
    if domain in (DEFAULT_DOMAIN, "index.docker.io"):
        domain = DEFAULT_DOMAIN
        if "/" not in rest.partition("@")[0]:
            rest = f"library/{rest}"
    reference = Reference._split(f"{domain}/{rest}")
    return reference if reference.object else replace(reference, tag=DEFAULT_TAG)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
