"""What a filter sees of an image."""

from carina.filters import Adaptor, adaptor
from carina.images import Image


def fields(image: Image) -> Adaptor:
    return adaptor(
        {
            "name": image.name or None,
            "target": {"digest": str(image.target.digest), "mediatype": image.target.media_type or None},
            "labels": image.labels,
            "annotations": image.target.annotations,
        }
    )
