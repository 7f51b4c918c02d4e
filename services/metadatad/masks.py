"""Field masks of containers and sandboxes: which fields of a record an update changes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from carina import labels
from carina.containers import Container
from carina.errors import InvalidArgument
from carina.sandboxes import Sandbox

R = TypeVar("R", Container, Sandbox)


def changed(old: R, new: R, fields: Sequence[str], *, whole: Mapping[str, str], owner: str) -> R:
    """The old record with fields from the new one: labels, extensions, single ones of them, and those of `whole`.

    `whole` says the attribute for the name of a field that changes as a whole.

    Raises:
        InvalidArgument: another field.
    """
    result = old
    for field in fields:
        if field == "labels" or field.startswith("labels."):
            result = replace(result, labels=labels.changed(result.labels, new.labels, [field]))
        elif field == "extensions":
            result = replace(result, extensions=new.extensions)
        elif field.startswith("extensions."):
            name = field.removeprefix("extensions.")
            extensions = {key: value for key, value in result.extensions.items() if key != name}
            if name in new.extensions:
                extensions[name] = new.extensions[name]
            result = replace(result, extensions=extensions)
        elif field in whole:
            result = replace(result, **{whole[field]: getattr(new, whole[field])})
        else:
            raise InvalidArgument(f"field {field!r} of {owner} can't be updated")
    return result
