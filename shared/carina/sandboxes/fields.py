"""What a filter sees of a sandbox."""

from carina.filters import Adaptor, adaptor
from carina.sandboxes import Sandbox


def fields(sandbox: Sandbox) -> Adaptor:
    return adaptor(
        {
            "id": sandbox.id or None,
            "runtime": {"name": sandbox.runtime.name if sandbox.runtime else None},
            "sandboxer": sandbox.sandboxer or None,
            "labels": sandbox.labels,
        }
    )
