"""The error classes of the domain: one for each gRPC status that containerd's clients act upon.

An error's text is one sentence that names the object ("content sha256:…: not found").
This module knows nothing of the wire: `carina.rpc.codes` holds the one table between these classes and gRPC statuses.
"""


class CarinaError(Exception):
    """Any failure that has a class of its own. Raised itself only for what nothing else fits (UNKNOWN)."""


class Cancelled(CarinaError):
    """The caller gave the operation up."""


class InvalidArgument(CarinaError):
    """The request can't be right, whatever the state of the system."""


class DeadlineExceeded(CarinaError):
    """The time that was given is over; the operation may have happened."""


class NotFound(CarinaError):
    """The named object does not exist in this namespace."""


class AlreadyExists(CarinaError):
    """An object of that name is there already. Clients treat this as success where the content must be the same."""


class PermissionDenied(CarinaError):
    """The caller may not do this."""


class ResourceExhausted(CarinaError):
    """A disk, quota or limit is full."""


class FailedPrecondition(CarinaError):
    """The system is not in a state for this: the caller must change the state first."""


class Aborted(CarinaError):
    """A concurrent change got in between: the caller may start again from reading."""


class OutOfRange(CarinaError):
    """An offset or size beyond the end."""


class Unimplemented(CarinaError):
    """Not built, or not by this implementation."""


class Internal(CarinaError):
    """An invariant of ours is broken."""


class Unavailable(CarinaError):
    """The service or object can't be had now; the same call may succeed later."""


class DataLoss(CarinaError):
    """Stored bytes are damaged or gone."""


class Unauthenticated(CarinaError):
    """No valid credentials."""
