"""Source text of a decoder: `decode(data, at, end)` reads the message that fills data[at:end].

It raises `Malformed`, IndexError, UnicodeDecodeError or struct.error for bytes that are no such message.
"""

from collections.abc import Iterator

from carina.rpc import wire
from carina.rpc.fields import FIXED, Field, indent


def source(fields: list[Field]) -> Iterator[str]:
    yield "def decode(data, at, end):"
    for field in fields:
        yield f"    {field.local} = {field.initial}"
    yield "    unknown = b''"
    yield "    while at < end:"
    yield "        start = at"
    yield "        tag = data[at]"
    yield "        at += 1"
    yield "        if tag > 127:"
    yield "            tag, at = read_varint(data, start, end)"
    word = "if"
    for field in fields:
        for line in _decode_field(field):
            yield "        " + (line.replace("if", word, 1) if line.startswith("if tag") else line)
            word = "elif"
    if fields:
        numbers = ", ".join(str(field.number) for field in fields)
        yield f"        {word} tag >> 3 in ({numbers},):"
        yield "            raise Malformed('a field has the wrong type')"
        yield "        else:"
    else:
        yield "        if True:"
    yield "            at = wire.skip(data, at, end, tag=tag)"
    yield "            unknown += data[start:at]"
    yield "    if at != end:"
    yield "        raise Malformed('a field is cut off')"
    yield "    message = new(kind)"
    items = ", ".join(f"{field.name!r}: {field.local}" for field in fields)
    yield f"    message.__dict__ = {{{items}{', ' if items else ''}'_unknown_fields': unknown}}"
    yield "    return message"


def _decode_field(field: Field) -> Iterator[str]:
    if field.kind == "map":
        yield f"if tag == {field.tag()}:"
        yield from indent(4, _decode_map(field))
        return
    yield f"if tag == {field.tag()}:"
    target = "item" if field.repeated else field.local
    if field.kind == "message":
        yield from indent(4, _decode_message(field, target))
    else:
        yield from indent(4, _decode_scalar(field, target, "end"))
    if field.repeated:
        yield f"    {field.local}.append(item)"
    for other in field.group:
        yield f"    field_{other} = None"
    if field.repeated and field.packable:
        yield f"if tag == {field.tag(wire.DELIMITED)}:"
        yield from indent(4, _decode_length())
        yield "    while at < stop:"
        yield from indent(8, _decode_scalar(field, "item", "stop"))
        yield f"        {field.local}.append(item)"
        yield "    if at != stop:"
        yield "        raise Malformed('a field is cut off')"


def _decode_length(end: str = "end", stop: str = "stop") -> Iterator[str]:
    """Leaves `at` at the first byte of a delimited value and `stop` behind its last."""
    yield "size = data[at]"
    yield "at += 1"
    yield "if size > 127:"
    yield f"    size, at = read_varint(data, at - 1, {end})"
    yield f"{stop} = at + size"
    yield f"if {stop} > {end}:"
    yield "    raise Malformed('a field is cut off')"


def _decode_scalar(field: Field, target: str, end: str) -> Iterator[str]:
    if field.kind in ("string", "bytes"):
        yield from _decode_length(end)
        yield f"{target} = " + ("str(data[at:stop], 'utf-8')" if field.kind == "string" else "data[at:stop]")
        yield "at = stop"
        return
    if field.kind in FIXED:
        yield f"{target}, = unpack_{field.number}(data, at)"
        yield f"at += {8 if field.wire_kind == wire.FIXED64 else 4}"
        return
    yield "number = data[at]"
    yield "at += 1"
    yield "if number > 127:"
    yield f"    number, at = read_varint(data, at - 1, {end})"
    yield f"{target} = {_from_number(field)}"


def _from_number(field: Field) -> str:
    signed32 = "(number & 0xFFFFFFFF ^ 0x80000000) - 0x80000000"
    match field.kind:
        case "bool":
            return "number != 0"
        case "int32":
            return f"number if number < 0x80000000 else {signed32}"
        case "int64":
            return "number if number < 1 << 63 else number - (1 << 64)"
        case "uint32":
            return "number & 0xFFFFFFFF"
        case "sint32":
            return "(number & 0xFFFFFFFF) >> 1 ^ -(number & 1)"
        case "sint64":
            return "number >> 1 ^ -(number & 1)"
        case "enum":
            known = f"known_{field.number}"
            return f"{known}[number] if number in {known} else enum_{field.number}({signed32})"
        case _:
            return "number"


def _decode_message(field: Field, target: str) -> Iterator[str]:
    yield from _decode_length()
    value = f"decode_{field.number}(data, at, stop)"
    if field.repeated:
        yield f"{target} = {value}"
    else:
        # A message that is sent in several parts is the parts merged.
        yield f"if {target} is None:"
        yield f"    {target} = {value}"
        yield "else:"
        yield f"    merged = encode_{field.number}({target}) + data[at:stop]"
        yield f"    {target} = decode_{field.number}(merged, 0, len(merged))"
    yield "at = stop"


def _decode_map(field: Field) -> Iterator[str]:
    assert field.key is not None
    assert field.value is not None
    value = field.value
    value_tag = 2 << 3 | value.wire_kind
    yield from _decode_length(stop="last")
    yield f"key = {field.key.initial}"
    yield f"item = {'None' if value.kind == 'message' else value.initial}"
    yield "while at < last:"
    yield "    tag = data[at]"
    yield "    at += 1"
    yield "    if tag > 127:"
    yield "        tag, at = read_varint(data, at - 1, last)"
    yield f"    if tag == {field.key.tag()}:"
    yield from indent(8, _decode_scalar(field.key, "key", "last"))
    yield f"    elif tag == {value_tag}:"
    if value.kind == "message":
        yield from indent(8, _decode_length("last"))
        yield f"        item = decode_{value.number}(data, at, stop)"
        yield "        at = stop"
    else:
        yield from indent(8, _decode_scalar(value, "item", "last"))
    yield "    elif tag >> 3 in (1, 2):"
    yield "        raise Malformed('a field has the wrong type')"
    yield "    else:"
    yield "        at = wire.skip(data, at, last, tag=tag)"
    yield "if at != last:"
    yield "    raise Malformed('a field is cut off')"
    if value.kind == "message":
        yield "if item is None:"
        yield f"    item = decode_{value.number}(b'', 0, 0)"
    yield f"{field.local}[key] = item"
