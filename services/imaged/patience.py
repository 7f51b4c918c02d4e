"""How often something transient is tried again, and how long is waited before."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from carina.errors import CarinaError, ResourceExhausted, Unavailable

TRANSIENT: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Statuses after which another attempt may succeed."""
LIMITED: Final = 429
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how patiently something transient is tried again."""

    attempts: int = 5
    first: float = 0.2
    """Seconds before the second attempt; doubled for each further one."""
    longest: float = 10.0
    """Seconds that a wait of our own choice may last."""
    longest_asked: float = 120.0
    """Seconds that a registry may ask one to wait; where it asks for more, it is not tried again."""

    def pause(self, attempt: int, asked: float = 0.0) -> float:
        """Seconds to wait after failed attempt number `attempt`, from 1."""
        backoff = min(self.longest, self.first * float(2 ** min(attempt - 1, 30)))
        # Never before the registry wants it, and not all at once.
        return max(asked * random.uniform(1.0, 1.1), backoff * random.uniform(0.5, 1.0))  # noqa: S311 -- no secret


class Transient(Unavailable):
    """A failure that may not occur again. `wait` is what the registry asked for, in seconds."""

    wait: float = 0.0
    exhausted: bool = False
    """The registry limits the rate of requests."""

    def final(self, attempts: int) -> CarinaError:
        """The error for the caller when no attempt is left."""
        text = f"{self} ({attempts} attempts)" if attempts > 1 else str(self)
        return ResourceExhausted(text) if self.exhausted else Unavailable(text)


def refused(text: str, status: int, headers: Mapping[str, str]) -> Transient:
    """The failure that a transient status is."""
    error = Transient(text)
    error.wait, error.exhausted = retry_after(headers.get("Retry-After", "")), status == LIMITED
    return error


def retry_after(text: str) -> float:
    """Seconds, from a number of them or a date (RFC 9110, section 10.2.3); 0 for anything else."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        then = parsedate_to_datetime(text[:64])
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


async def pause(retry: Retry, attempt: int, error: Transient) -> None:
    """Wait before the next attempt, or raise the error where none is left."""
    if error.wait > retry.longest_asked:
        asked = type(error)(f"{error}; it asks to be tried again in {error.wait:.0f} s")
        asked.exhausted = error.exhausted
        raise asked.final(attempt) from error
    if attempt >= retry.attempts:
        raise error.final(attempt) from error
    await asyncio.sleep(retry.pause(attempt, error.wait))


async def patiently(retry: Retry, act: Callable[[], Awaitable[Result]]) -> Result:
    """The result of `act`, tried again while what it raises is transient."""
    attempt = 0
    while True:
        attempt += 1
        try:
            return await act()
        except Transient as error:
            await pause(retry, attempt, error)
