"""Namespaces: administrative separation of everything but the bytes themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class NamespaceStore(Protocol):
    async def get(self, name: str) -> Namespace:
        """A namespace that does not exist has no labels: it comes to be with the first object made in it.

        Raises:
            InvalidArgument: the name is not an identifier.
        """

    async def list(self) -> Sequence[Namespace]: ...

    async def create(self, namespace: Namespace) -> Namespace:
        """Raises AlreadyExists or InvalidArgument."""

    async def update(self, namespace: Namespace, fields: Sequence[str] = ()) -> Namespace:
        """Fields: `labels` or `labels.KEY`; all if empty. Makes the namespace where there is none.

        Raises:
            InvalidArgument: another field, a label that can't be, or a name that is no identifier.
        """

    async def delete(self, name: str) -> None:
        """Raises NotFound, or FailedPrecondition while anything is in it."""
