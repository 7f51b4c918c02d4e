"""Content digests as the OCI image specification defines them (descriptor.md, "Digests")."""

import hashlib
import re
from typing import TYPE_CHECKING, Final, Self

from carina.errors import InvalidArgument

if TYPE_CHECKING:
    from hashlib import _Hash

HEX_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_FORM: Final = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")


class Digest(str):
    """`algorithm:hex`, validated when made, so that one can be a path component or a key.

    Raises:
        InvalidArgument: the text is not a digest of a supported algorithm.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if type(text) is cls:
            return text
        match = _FORM.fullmatch(text)
        if match is None or len(match[2]) != HEX_LENGTHS[match[1]]:
            shown = text if len(text) <= 150 else text[:150] + "…"
            raise InvalidArgument(f"digest {shown!r} is not valid: expected sha256, sha384 or sha512, a colon and hex")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    def hasher(self) -> "_Hash":
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        return cls(f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}")
