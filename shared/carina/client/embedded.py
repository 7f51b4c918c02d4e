"""A client without services: images in a directory of one's own, fetched and pushed by this process.

The directory is an OCI image layout, so that other tools read it. What works is what needs no daemon: the content
store, the image records, and the transfers of the services' code, which is loaded where it is installed.
"""

import contextlib
import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carina.aio.threads import in_thread
from carina.errors import Unavailable

if TYPE_CHECKING:
    from carina.client.client import Client
    from carina.content import ContentStore
    from carina.diff import Differ
    from carina.images import ImageStore
    from carina.transfer import Transfer


@contextlib.asynccontextmanager
async def embedded(directory: Path) -> AsyncIterator["Client"]:
    """A client on `directory`, which it owns for the time of the block, with the machine's configuration.

    Raises:
        FailedPrecondition: another process has the directory.
    """
    from carina.client.client import Client
    from carina.images.layout import LayoutImages

    config = await in_thread(_load("imaged.embedded").configured)
    async with _load("contentd.store").LocalContentStore(directory) as content:
        images = LayoutImages(directory)
        async with Client(content=content, images=images, transfer=transfers(content, images, config)) as client:
            yield client


def transfers(content: "ContentStore", images: "ImageStore", config: Any = None, **stores: Any) -> "Transfer":
    """Transfers between registries, archives and these stores, made by this process.

    `stores` are `snapshotter` (a function from names), `differ` and `leases`, where images are unpacked or collected.
    """
    made: Transfer = _load("imaged.embedded").transfers(content, images, config, **stores)
    return made


def differ(content: "ContentStore") -> "Differ":
    """A differ in this process, whose layers are in `content`. Applying takes root: it mounts."""
    made: Differ = _load("imaged.embedded").differ(content)
    return made


def _load(name: str) -> Any:
    """A service's code. It is looked for when it is needed: the library works without the services."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        service = name.partition(".")[0]
        raise Unavailable(f"working without a daemon takes the code of {service}, which is not installed") from error
