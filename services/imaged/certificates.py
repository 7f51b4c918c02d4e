"""Certificates for talking to a registry: whom to believe, and what to show of oneself."""

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from carina.errors import InvalidArgument

Pair = tuple[Path, Path]
"""A client's certificate, and the file with its key, which may be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What a configuration says of TLS; empty: what the system trusts."""

    authorities: tuple[Path, ...] = ()
    """Trusted besides the system's."""
    pairs: tuple[Pair, ...] = ()
    verify: bool = True

    @classmethod
    def in_directory(cls, directory: Path) -> Self:
        """Files as Docker has them: `*.crt` are authorities, `NAME.cert` and `NAME.key` are a client's."""
        files = sorted(path for path in directory.iterdir() if path.is_file())
        keys = {path.stem: path for path in files if path.suffix == ".key"}
        return cls(
            authorities=tuple(path for path in files if path.suffix == ".crt"),
            pairs=tuple((path, keys.get(path.stem, path)) for path in files if path.suffix == ".cert"),
        )

    def __bool__(self) -> bool:
        return bool(self.authorities or self.pairs or not self.verify)

    def context(self) -> ssl.SSLContext | bool:
        """What aiohttp takes for `ssl`. Reads files.

        Raises:
            InvalidArgument: a file can't be read, or is not what it should be; it is named.
        """
        if not self:
            return True
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for path in self.authorities:
            with _naming(path):
                context.load_verify_locations(cafile=path)
        for certificate, key in self.pairs:
            with _naming(certificate, key):
                # A password is given so that a key that has one is an error, instead of a question on the terminal.
                context.load_cert_chain(certificate, key, password="")
        return context

    def anonymous(self) -> Self:
        """The same without what tells who one is."""
        return replace(self, pairs=())


@contextlib.contextmanager
def _naming(*files: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        named = " and ".join(dict.fromkeys(str(file) for file in files))
        reason = "not PEM of what is expected there" if isinstance(error, ssl.SSLError | ValueError) else error.strerror
        raise InvalidArgument(f"certificates {named} can't be loaded: {reason}") from error
