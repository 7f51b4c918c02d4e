"""What a filter sees of a blob and of an ingest."""

from carina.content import Info, Status
from carina.filters import Adaptor, adaptor


def fields(info: Info) -> Adaptor:
    return adaptor({"digest": str(info.digest), "size": str(info.size), "labels": info.labels})


def status_fields(status: Status) -> Adaptor:
    return adaptor({"ref": status.ref})
