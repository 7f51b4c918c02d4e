"""The codec against Google's protobuf and betterproto2."""

import datetime
import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from carina.api.containerd.services.content.v1 import Info, ListContentRequest, WriteAction, WriteContentRequest
from carina.api.google.protobuf import Any as AnyMessage
from carina.api.google.protobuf import Timestamp
from carina.errors import Internal, InvalidArgument
from carina.rpc.codec import decode, encode
from support.protobuf import fill, ours, theirs

UTC = datetime.UTC
INFO = "containerd.services.content.v1.Info"


def _filled(name: str, seed: int) -> Any:
    return fill(theirs(name)(), random.Random(seed))


@pytest.mark.parametrize("name", ours())
def test_every_message_of_the_api_survives(name: str) -> None:
    """What Google's protobuf writes, we read; what we write, it reads: the same message, for each class of the API."""
    for seed in range(6):
        sent = _filled(name, seed)

        message = decode(ours()[name], sent.SerializeToString())

        assert theirs(name).FromString(encode(message)) == sent
        assert encode(decode(ours()[name], encode(message))) == encode(message)


def test_messages_are_those_of_betterproto2() -> None:
    """For well-formed messages our codec does what betterproto2's does, for each class of the API."""
    for name, kind in ours().items():
        data = _filled(name, 7).SerializeToString()
        message = decode(kind, data)

        assert kind.parse(encode(message)) == message
        assert decode(kind, bytes(message)) == message


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(sorted(ours())), st.data())
def test_damaged_bytes_are_refused_or_read_as_others_read_them(seed: int, name: str, data: st.DataObject) -> None:
    """Whatever was done to a message's bytes: we refuse them, or Google's protobuf reads the same from them."""
    whole = bytearray(_filled(name, seed).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        message = decode(ours()[name], damaged)
    except InvalidArgument:
        return

    again = theirs(name).FromString(encode(message))

    assert _to_microseconds(again) == _to_microseconds(theirs(name).FromString(damaged))


def _to_microseconds(message: Any) -> Any:
    """Cut moments as datetime does; unknown fields are compared by what they are written as."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        message.nanos = message.nanos // 1000 * 1000
        message.DiscardUnknownFields()
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for item in value.values():
                    _to_microseconds(item)
        elif field.is_repeated:
            for item in value:
                _to_microseconds(item)
        else:
            _to_microseconds(value)
    return message


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_noise_never_crashes_the_decoder(data: bytes) -> None:
    """Any bytes give a message or InvalidArgument, and never what Google's protobuf refuses."""
    try:
        decode(Info, data)
    except InvalidArgument:
        return
    try:
        theirs(INFO).FromString(data)
    except DecodeError:
        pytest.fail(f"accepted {data!r}")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a\x05ab", "cut off"),
        (b"\x08\x01", "wrong type"),
        (b"\x12\x01a", "wrong type"),
        (b"\x0b\x0c", "wrong type"),
        (b"\x7b\x7c", "groups"),
        (b"\x0a\x02\xff\xfe", "utf-8"),
        (b"\x0a", "cut off"),
        (b"\x10" + b"\x80" * 10 + b"\x01", "more than 64 bits"),
        (b"\x10" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x00\x01", "no such field number"),
        (b"\x7e\x01", "groups"),
        (b"\x2a\x04\x0a\x09ab", "cut off"),
        (b"\x1a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off"),
        (b"\x1a\x0a\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "years 1 to 9999"),
        (b"\x1a\x06\x10\x80\x94\xeb\xdc\x03", "years 1 to 9999"),
        (b"\x10\x05\x0a", "cut off"),
    ],
)
def test_malformed_messages_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    """Truncation, wrong types, groups, bad text, long numbers and impossible moments are InvalidArgument."""
    with pytest.raises(InvalidArgument, match=reason):
        decode(Info, data)


def test_fields_from_the_future_are_kept() -> None:
    """A field that our version of the API does not know survives being read and written."""
    data = encode(Info(digest="a")) + b"\xfa\x3f\x03new\xd0\x3f\x07"

    message = decode(Info, data)

    assert message.digest == "a"
    assert encode(message) == data


def test_values_of_enums_from_the_future_are_kept() -> None:
    """Enums are open: unknown and negative values pass through."""
    for number in (77, -3):
        sent = theirs("containerd.services.content.v1.WriteContentRequest")(action=number)

        message = decode(WriteContentRequest, sent.SerializeToString())

        assert message.action == number
        assert isinstance(message.action, WriteAction)
        assert encode(message) == sent.SerializeToString()


def test_go_time_zero_is_a_moment() -> None:
    """The year 1, which Go sends for a time that is not set, is read and written."""
    sent = Info(created_at=datetime.datetime(1, 1, 1, tzinfo=UTC))

    assert decode(Info, encode(sent)) == sent


def test_moments_of_any_zone_are_written_in_utc() -> None:
    """A moment is the same moment after the trip, whatever its zone was."""
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    sent = Info(created_at=datetime.datetime(1969, 12, 31, 23, 59, 59, 123456, tzinfo=zone))

    received = decode(Info, encode(sent))

    assert received.created_at == sent.created_at
    assert received.created_at is not None
    assert received.created_at.utcoffset() == datetime.timedelta(0)


def test_messages_in_parts_are_merged() -> None:
    """A sub-message that comes twice is merged, as the format says."""
    first, second = encode(Timestamp(seconds=5)), encode(Timestamp(nanos=7000))

    parts = b"".join(b"\x1a" + bytes([len(part)]) + part for part in (first, second))

    assert decode(Info, parts).created_at == datetime.datetime(1970, 1, 1, 0, 0, 5, 7, tzinfo=UTC)
    assert theirs(INFO).FromString(parts).created_at.nanos == 7000


@pytest.mark.parametrize(
    "message",
    [
        Info(size=1 << 63),
        Info(digest="\udc80"),
        Info(created_at=datetime.datetime(2026, 1, 1)),
    ],
)
def test_what_a_field_cannot_hold_is_our_fault(message: Info) -> None:
    """Integers over 64 bits, lone surrogates and moments without zone are Internal, not silently something else."""
    with pytest.raises(Internal, match="Info can't be written"):
        encode(message)


def test_repeated_fields_and_empty_messages() -> None:
    """Empty strings in lists, and empty messages, are kept."""
    sent = ListContentRequest(filters=["", "a", ""])

    assert decode(ListContentRequest, encode(sent)) == sent
    assert encode(AnyMessage()) == b""
    assert decode(AnyMessage, b"") == AnyMessage()
