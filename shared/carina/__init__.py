"""The library of the constellation: one interface per noun, and what every service needs to serve or call it.

`carina.Client` and `carina.embedded` are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carina.client.client import Client as Client
    from carina.client.embedded import embedded as embedded

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What a service never needs is not loaded with the library: `import carina` stays cheap."""
    if name == "Client":
        from carina.client.client import Client

        return Client
    if name == "embedded":
        from carina.client.embedded import embedded

        return embedded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
