"""Errno to domain error: used where the path is known, so that the sentence can name it."""

import errno
from typing import Final

from carina.errors import (
    AlreadyExists,
    CarinaError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
)

_CLASSES: Final[dict[int, type[CarinaError]]] = {
    errno.ENOENT: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.EPERM: PermissionDenied,
    errno.EACCES: PermissionDenied,
    errno.EROFS: FailedPrecondition,
    errno.EBUSY: FailedPrecondition,
    errno.ENOTEMPTY: FailedPrecondition,
    errno.ENODEV: FailedPrecondition,
    errno.EINVAL: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ENOTDIR: InvalidArgument,
    errno.EISDIR: InvalidArgument,
    errno.ELOOP: InvalidArgument,
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.ENOSYS: Unimplemented,
    errno.EOPNOTSUPP: Unimplemented,
}


def translated(error: OSError, doing: str) -> CarinaError:
    """The domain error for `error`: `doing` says what was tried and on what, the reason follows it."""
    kind = _CLASSES.get(error.errno or 0, CarinaError)
    return kind(f"{doing}: {(error.strerror or str(error)).lower()}")
