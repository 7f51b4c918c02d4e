"""What a filter sees of a lease."""

from carina.filters import Adaptor, adaptor
from carina.leases import Lease


def fields(lease: Lease) -> Adaptor:
    return adaptor({"id": lease.id or None, "labels": lease.labels})
