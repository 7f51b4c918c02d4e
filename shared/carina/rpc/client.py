"""Channels: gRPC clients over unix sockets that carry the call's context and raise the domain's errors."""

import asyncio
from typing import Any

import grpclib.client
from grpclib import GRPCError
from grpclib.const import Cardinality
from grpclib.exceptions import ProtocolError, StreamTerminatedError
from grpclib.metadata import Deadline

from carina import context, errors
from carina.config import socket_path
from carina.rpc.codec import Codec
from carina.rpc.codes import to_domain


def connect(address: str) -> "Channel":
    """A channel to `unix:///path`; it connects with the first call, and again when the peer was restarted."""
    return Channel(address)


class Channel(grpclib.client.Channel):
    def __init__(self, address: str) -> None:
        super().__init__(path=str(socket_path(address)), codec=Codec())
        self.address = address

    def request(
        self,
        name: str,
        cardinality: Cardinality,
        request_type: Any,
        reply_type: Any,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
        metadata: Any = None,
    ) -> "Stream":
        call = context.current()
        headers = list(metadata.items() if isinstance(metadata, dict) else metadata or ())
        for key, value in (
            ("containerd-namespace", call.namespace),
            ("containerd-lease", call.lease),
            ("traceparent", call.trace),
        ):
            if value:
                headers.append((key, value))
        remaining = call.remaining
        if remaining is not None:
            timeout = remaining if timeout is None else min(timeout, remaining)
        stream = super().request(
            name, cardinality, request_type, reply_type, timeout=timeout, deadline=deadline, metadata=headers
        )
        stream.__class__ = Stream
        stream.address = self.address
        return stream


class Stream(grpclib.client.Stream[Any, Any]):
    address: str

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        except BaseException as raised:
            translated = self._translate(raised)
            if translated is raised:
                raise
            raise translated from raised
        if error is not None:
            translated = self._translate(error)
            if translated is not error:
                raise translated from error

    def _translate(self, error: BaseException) -> BaseException:
        if isinstance(error, errors.CarinaError | asyncio.CancelledError):
            return error
        if isinstance(error, GRPCError):
            return to_domain(error)
        if isinstance(error, StreamTerminatedError):
            return errors.Unavailable(f"the connection to {self.address} broke: {error}")
        if isinstance(error, TimeoutError):
            return errors.DeadlineExceeded(f"{self._method_name}: no answer from {self.address} in the time given")
        if isinstance(error, OSError):
            return errors.Unavailable(f"nothing answers at {self.address}: {error.strerror or error}")
        if isinstance(error, ProtocolError):
            return errors.Internal(f"{self._method_name} at {self.address}: {error}")
        return error
