"""Platforms: which processor and system a binary is for (OCI image-index.md), and which of them this machine runs.

Names are those of Go's GOOS and GOARCH; other spellings in use are normalised.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Self

from carina.errors import InvalidArgument

_COMPONENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
}
_SYSTEMS: Final = {"macos": "darwin"}
_VARIANTS: Final = {"5": "v5", "6": "v6", "7": "v7", "8": "v8"}
_ARM: Final = ("v8", "v7", "v6", "v5")
_AMD64: Final = ("v4", "v3", "v2", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`linux/arm64/v8`, as `parse` reads it."""
        return "/".join(part for part in (self.os or "unknown", self.architecture, self.variant) if part)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `OS/ARCHITECTURE[/VARIANT]`, `OS` or `ARCHITECTURE`; what is not said is the host's.

        Raises:
            InvalidArgument: neither a system nor an architecture, or characters that names do not have.
        """
        parts = text.split("/")
        if len(parts) > 3 or any(_COMPONENT.fullmatch(part) is None for part in parts):
            raise InvalidArgument(f"platform {text[:100]!r} is not valid: expected OS/ARCHITECTURE[/VARIANT]")
        own = host()
        if len(parts) > 1:
            variant = parts[2] if len(parts) == 3 else ""
            return cls._of(cls(os=parts[0], architecture=parts[1], variant=variant).normalized())
        name = cls(os=text, architecture=text).normalized()
        if name.os in ("linux", "windows", "darwin", "freebsd"):
            return cls(os=name.os, architecture=own.architecture, variant=own.variant)
        if name.architecture in _KNOWN_ARCHITECTURES:
            return cls(os=own.os, architecture=name.architecture, variant=name.variant)
        raise InvalidArgument(f"platform {text[:100]!r} is not valid: neither a system nor an architecture")

    @classmethod
    def _of(cls, platform: "Platform") -> Self:
        return cls(os=platform.os, architecture=platform.architecture, variant=platform.variant)

    def normalized(self) -> "Platform":
        """The one spelling of this platform: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`."""
        system = self.os.lower()
        architecture, variant = self.architecture.lower(), self.variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = variant or implied
        if architecture in ("arm", "arm64"):
            variant = _VARIANTS.get(variant, variant)
        if architecture == "arm" and not variant:
            variant = "v7"
        if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
            variant = ""
        return replace(self, os=_SYSTEMS.get(system, system), architecture=architecture, variant=variant)


_KNOWN_ARCHITECTURES: Final = frozenset(
    ("386", "amd64", "arm", "arm64", "loong64", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x", "wasm")
)


@cache
def host() -> Platform:
    """The platform of this machine."""
    return Platform(os=sys.platform, architecture=os.uname().machine).normalized()


def runs(wanted: Platform) -> tuple[Platform, ...]:
    """What a machine of a platform runs, best first: arm/v7 also v6 and v5, arm64 the 32-bit ones, amd64 the 386."""
    wanted = wanted.normalized()
    found = [wanted]
    if wanted.architecture == "arm64":
        found += [replace(wanted, variant="")] if wanted.variant else []
        found += [replace(wanted, architecture="arm", variant=variant) for variant in _ARM]
    elif wanted.architecture == "arm" and wanted.variant in _ARM:
        found += [replace(wanted, variant=variant) for variant in _ARM[_ARM.index(wanted.variant) + 1 :]]
    elif wanted.architecture == "amd64":
        if wanted.variant in _AMD64:
            found += [replace(wanted, variant=variant) for variant in _AMD64[_AMD64.index(wanted.variant) + 1 :]]
        found.append(replace(wanted, architecture="386", variant=""))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Matcher:
    """Chooses among platforms; one without wishes takes all, in their order."""

    accepted: tuple[Platform, ...] = ()
    """Best first."""

    @classmethod
    def only(cls, *wanted: Platform) -> Self:
        """What runs on a machine of one of the platforms; the exact ones come before what they also run."""
        return cls(tuple(platform for one in wanted for platform in runs(one)))

    @classmethod
    def exactly(cls, *wanted: Platform) -> Self:
        return cls(tuple(one.normalized() for one in wanted))

    def rank(self, platform: Platform) -> int | None:
        """How far down the list of wishes a platform is; None where it is not wanted."""
        if not self.accepted:
            return 0
        platform = platform.normalized()
        for position, accepted in enumerate(self.accepted):
            if _same(accepted, platform):
                return position
        return None

    def matches(self, platform: Platform) -> bool:
        return self.rank(platform) is not None


def _same(accepted: Platform, platform: Platform) -> bool:
    return (
        (accepted.os, accepted.architecture, accepted.variant) == (platform.os, platform.architecture, platform.variant)
        and (not accepted.os_version or accepted.os_version == platform.os_version)
        and set(accepted.os_features) >= set(platform.os_features)
    )


def best(candidates: Sequence[Platform], matcher: Matcher) -> int | None:
    """The position of the candidate that is wanted most; None where none is."""
    ranked = [(rank, at) for at, one in enumerate(candidates) if (rank := matcher.rank(one)) is not None]
    return min(ranked)[1] if ranked else None
