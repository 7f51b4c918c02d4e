"""The one two-way table between the error classes of the domain and gRPC statuses.

Every class has exactly one status and every status but OK exactly one class, so an error crosses any number of
processes unchanged. `asyncio.CancelledError` is in neither column: a cancelled call is never answered with an error.
"""

from typing import Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from carina import errors

STATUS_OF: Final[dict[type[errors.CarinaError], Status]] = {
    errors.Cancelled: Status.CANCELLED,
    errors.CarinaError: Status.UNKNOWN,
    errors.InvalidArgument: Status.INVALID_ARGUMENT,
    errors.DeadlineExceeded: Status.DEADLINE_EXCEEDED,
    errors.NotFound: Status.NOT_FOUND,
    errors.AlreadyExists: Status.ALREADY_EXISTS,
    errors.PermissionDenied: Status.PERMISSION_DENIED,
    errors.ResourceExhausted: Status.RESOURCE_EXHAUSTED,
    errors.FailedPrecondition: Status.FAILED_PRECONDITION,
    errors.Aborted: Status.ABORTED,
    errors.OutOfRange: Status.OUT_OF_RANGE,
    errors.Unimplemented: Status.UNIMPLEMENTED,
    errors.Internal: Status.INTERNAL,
    errors.Unavailable: Status.UNAVAILABLE,
    errors.DataLoss: Status.DATA_LOSS,
    errors.Unauthenticated: Status.UNAUTHENTICATED,
}
CLASS_OF: Final[dict[Status, type[errors.CarinaError]]] = {status: error for error, status in STATUS_OF.items()}


def status_of(error: errors.CarinaError) -> Status:
    """The status of an error; a subclass has that of its nearest ancestor in the table."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def to_domain(error: GRPCError) -> errors.CarinaError:
    """The domain's error for what a peer answered."""
    message = error.message or error.status.name.replace("_", " ").lower()
    return CLASS_OF.get(error.status, errors.CarinaError)(message)


def to_wire(error: errors.CarinaError) -> GRPCError:
    """What to answer a peer for an error of the domain."""
    return GRPCError(status_of(error), str(error))
