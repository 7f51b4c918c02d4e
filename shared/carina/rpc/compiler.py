"""An encoder and a decoder for each message class, compiled when the class is first used.

The compiled functions do per field what betterproto2 finds out per message: names, tags and types are constants in
them (`encoder.py`, `decoder.py`).
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import betterproto2

from carina.rpc import decoder, encoder, wire
from carina.rpc.fields import fields_of

Kind = type[betterproto2.Message]


@dataclass(frozen=True, slots=True)
class Coder:
    """What is compiled for one class."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes, int, int], Any]


_coders: dict[Kind, Coder] = {}
_compiling = threading.Lock()


def coder(kind: Kind) -> Coder:
    """The functions for a class, compiled now if it is used for the first time."""
    known = _coders.get(kind)
    if known is not None:
        return known
    with _compiling:
        made: dict[Kind, Coder] = {}
        _compile(kind, made)
        # Only now, with all that it contains: another thread must not meet half of it.
        _coders.update(made)
    return _coders[kind]


def _compile(kind: Kind, made: dict[Kind, Coder]) -> Coder:
    known = _coders.get(kind) or made.get(kind)
    if known is not None:
        return known
    fields = fields_of(kind)
    scope: dict[str, Any] = {"wire": wire, "varint": wire.varint, "read_varint": wire.read_varint, "kind": kind}
    scope |= {"Malformed": wire.Malformed, "new": object.__new__, "SHORT": wire.SHORT}
    for field in fields:
        scope |= field.scope
    text = "\n".join([*encoder.source(fields), *decoder.source(fields)])
    exec(compile(text, f"<codec of {kind.__module__}.{kind.__name__}>", "exec"), scope)  # noqa: S102 - our own text
    one = made[kind] = Coder(encode=scope["encode"], decode=scope["decode"])
    for field in fields:  # after the class itself is known: types may contain themselves
        if field.message is not None:
            inner = _compile(field.message, made)
            scope[f"encode_{field.number}"], scope[f"decode_{field.number}"] = inner.encode, inner.decode
    return one
