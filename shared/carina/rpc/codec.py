"""Messages to bytes and back."""

from typing import Any, TypeVar

import betterproto2
from grpclib.encoding.base import CodecBase

from carina.errors import InvalidArgument

M = TypeVar("M", bound=betterproto2.Message)


def encode(message: betterproto2.Message) -> bytes:
    return bytes(message)


def decode(kind: type[M], data: bytes) -> M:
    try:
        return kind.parse(data)
    except Exception as error:
        raise InvalidArgument(f"message {kind.__name__} is malformed") from error


class Codec(CodecBase):
    """The codec as grpclib wants it."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return decode(message_type, data)
