"""Google's own protobuf classes for our .proto files: what our codec is compared with."""

import functools
import importlib
import importlib.util
import pkgutil
import random
import string
import tempfile
from pathlib import Path
from typing import Any

import betterproto2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc

import carina.api
from carina.api.message_pool import default_message_pool

PROTO = Path(__file__).resolve().parents[2] / "proto"


def _folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        out = f"{directory}/set"
        include = [f"-I{PROTO}", f"-I{_folder('grpc_tools') / '_proto'}", f"-I{_folder('google.rpc').parents[1]}"]
        assert protoc.main(["protoc", *include, f"--descriptor_set_out={out}", "--include_imports", *files]) == 0
        found = descriptor_pb2.FileDescriptorSet.FromString(Path(out).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def theirs(name: str) -> Any:
    """Google's class for a full name, `containerd.services.content.v1.Info`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


@functools.cache
def ours() -> dict[str, type[betterproto2.Message]]:
    """Our class for each full name."""
    for module in pkgutil.walk_packages(carina.api.__path__, "carina.api."):
        importlib.import_module(module.name)
    found = {url.rpartition("/")[2]: kind for url, kind in default_message_pool.url_to_type.items()}
    names = [name for name in found if not name.startswith("google.")]
    return {name: found[name] for name in sorted(names) if _known(name)}


def _known(name: str) -> bool:
    try:
        _pool().FindMessageTypeByName(name)
    except KeyError:
        return False
    return True


_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_SINT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
}


def fill(message: Any, dice: random.Random, *, depth: int = 3) -> Any:
    """Set fields of one of Google's messages at random; moments are whole microseconds, as ours are."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        message.seconds = dice.choice([0, -62_135_596_800, 253_402_300_799, dice.randrange(1 << 31)])
        message.nanos = dice.choice([0, 1000 * dice.randrange(1_000_000)])
        return message
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.3:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(message, field, dice, depth=depth)
        elif field.message_type is not None:
            if depth:
                one = getattr(message, field.name)
                for _ in range(dice.randrange(3) if field.is_repeated else 1):
                    inner = one.add() if field.is_repeated else one
                    inner.SetInParent()
                    fill(inner, dice, depth=depth - 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(field, dice) for _ in range(dice.randrange(4)))
        else:
            setattr(message, field.name, _value(field, dice))
    return message


def _fill_map(message: Any, field: Any, dice: random.Random, *, depth: int) -> None:
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    entries = getattr(message, field.name)
    for _ in range(dice.randrange(4)):
        if value.message_type is None:
            entries[_value(key, dice)] = _value(value, dice)
        elif depth:
            fill(entries[_value(key, dice)], dice, depth=depth - 1)


def _value(field: Any, dice: random.Random) -> Any:
    if field.type in _RANGES:
        low, high = _RANGES[field.type]
        return dice.choice([0, 1, low, high, dice.randint(low, high), dice.randrange(200)])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return dice.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return dice.choice([0.0, 1.5, float("inf"), dice.random()])
    size = dice.choice([0, 1, 5, 127, 128, 2000])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.randbytes(size)
    return "".join(dice.choice(string.printable + "äß→🙂") for _ in range(size))
