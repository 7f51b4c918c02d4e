"""Whether a namespace gets a blob of another one for knowing its digest."""

from dataclasses import dataclass

from carina import context
from carina.digest import Digest
from metadatad import blobs
from metadatad.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    shared: bool
    """The policy of containerd's name; the opposite is `isolated`."""
    isolated: frozenset[str] = frozenset()
    """Namespaces that share with nobody, in either direction."""

    async def allows(self, records: Records, digest: Digest) -> bool:
        """For the call's namespace."""
        if self.shared and not self.isolated:
            return True
        shared = self.shared and context.namespace() not in self.isolated
        return await records.read(
            lambda connection: blobs.shareable(connection, digest, shared=shared, isolated=self.isolated)
        )
