"""What a filter sees of a container."""

from carina.containers import Container
from carina.filters import Adaptor, adaptor


def fields(container: Container) -> Adaptor:
    return adaptor(
        {
            "id": container.id or None,
            "image": container.image or None,
            "runtime": {"name": container.runtime.name if container.runtime else None},
            "snapshotter": container.snapshotter or None,
            "snapshotkey": container.snapshot_key or None,
            "sandbox": container.sandbox or None,
            "labels": container.labels,
        }
    )
