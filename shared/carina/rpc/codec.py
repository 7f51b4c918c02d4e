"""Messages to bytes and back: strict where betterproto2 is lenient, and fast.

What is no message of the wanted type is refused, never guessed at: truncated fields, wrong wire types, groups, text
that is not UTF-8, moments outside of the calendar. Fields that a type does not know are kept and written again.
"""

import struct
from dataclasses import dataclass
from typing import Any, TypeVar

import betterproto2
from grpclib.encoding.base import CodecBase

from carina.errors import Internal, InvalidArgument
from carina.rpc.compiler import coder
from carina.rpc.wire import Malformed

M = TypeVar("M", bound=betterproto2.Message)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message whose bytes are known: what is sent often, or is large, may be encoded in a way of its own."""

    data: bytes


def encode(message: betterproto2.Message | Encoded) -> bytes:
    """Raises Internal for a value that its field can't hold: a fault of ours."""
    if isinstance(message, Encoded):
        return message.data
    try:
        return coder(type(message)).encode(message)
    except (OverflowError, UnicodeEncodeError, ValueError, struct.error) as error:
        raise Internal(f"message {type(message).__name__} can't be written: {error}") from error


def decode(kind: type[M], data: bytes) -> M:
    """Raises InvalidArgument for bytes that are no message of this class."""
    try:
        message: M = coder(kind).decode(data, 0, len(data))
    except (Malformed, UnicodeDecodeError) as error:
        raise InvalidArgument(f"message {kind.__name__} is malformed: {error}") from error
    except (IndexError, struct.error) as error:
        raise InvalidArgument(f"message {kind.__name__} is malformed: it is cut off") from error
    except RecursionError as error:
        raise InvalidArgument(f"message {kind.__name__} is malformed: it is nested too deeply") from error
    return message


class Codec(CodecBase):
    """The codec as grpclib wants it."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return decode(message_type, data)
