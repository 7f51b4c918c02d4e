"""What a filter sees of a plugin."""

from carina.filters import Adaptor, adaptor
from carina.introspection import Plugin


def fields(plugin: Plugin) -> Adaptor:
    return adaptor(
        {"type": plugin.type or None, "id": plugin.id or None, "capabilities": ",".join(plugin.capabilities)}
    )
