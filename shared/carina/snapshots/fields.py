"""What a filter sees of a snapshot."""

from carina.filters import Adaptor, adaptor
from carina.snapshots import Info


def fields(info: Info) -> Adaptor:
    return adaptor({"kind": info.kind.name.lower(), "name": info.name, "parent": info.parent, "labels": info.labels})
