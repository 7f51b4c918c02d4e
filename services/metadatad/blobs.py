"""Rows of blobs and ingests. Plain functions of a connection, for the content store and the collector."""

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from carina import labels
from carina.content import Info
from carina.digest import Digest
from carina.errors import NotFound
from carina.leases import Resource
from carina.sqlite import now, to_time
from metadatad import edges, leases, namespaces, rpc, tombstones
from metadatad.columns import pack, unpack
from metadatad.records import Transaction

INGEST_SECONDS: Final = 24 * 3600
"""How long an ingest that no lease holds is kept after it was last opened, as in containerd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    ref: str
    backend_ref: str
    expected: Digest | None = None
    total: int = 0
    shared: bool = False
    """Nothing was written: the back end has the expected blob."""


def find(connection: sqlite3.Connection, namespace: str, digest: str) -> Info | None:
    row = connection.execute(
        "SELECT size, labels, created_at, updated_at FROM blobs WHERE namespace = ? AND digest = ?",
        (namespace, digest),
    ).fetchone()
    if row is None:
        return None
    return Info(
        digest=Digest(digest),
        size=row[0],
        labels=unpack(row[1]),
        created_at=to_time(row[2]),
        updated_at=to_time(row[3]),
    )


def get(connection: sqlite3.Connection, namespace: str, digest: str) -> Info:
    info = find(connection, namespace, digest)
    if info is None:
        raise NotFound(f"content {digest} does not exist")
    return info


def page(connection: sqlite3.Connection, namespace: str, after: str, limit: int) -> list[Info]:
    rows = connection.execute(
        "SELECT digest, size, labels, created_at, updated_at FROM blobs "
        "WHERE namespace = ? AND digest > ? ORDER BY digest LIMIT ?",
        (namespace, after, limit),
    )
    return [
        Info(
            digest=Digest(digest),
            size=size,
            labels=unpack(stored),
            created_at=to_time(created),
            updated_at=to_time(updated),
        )
        for digest, size, stored, created, updated in rows
    ]


def record(
    transaction: Transaction,
    namespace: str,
    digest: Digest,
    *,
    size: int,
    labels: Mapping[str, str],
) -> bool:
    """Write a blob's record, with its edges and the event; False where the namespace has one already."""
    connection = transaction.connection
    tombstones.exhume(connection, "content", "", digest)
    if find(connection, namespace, digest) is not None:
        return False
    namespaces.ensure(connection, namespace)
    created = now()
    connection.execute(
        "INSERT INTO blobs (namespace, digest, size, labels, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
        (namespace, digest, size, pack(labels), created, created),
    )
    edges.state(connection, namespace, edges.content(digest), labels)
    transaction.emit(namespace, "/content/create", rpc.content_create(digest, size))
    return True


def relabel(transaction: Transaction, namespace: str, digest: Digest, new: Info, fields: list[str]) -> Info:
    """Change a blob's labels by a field mask."""
    connection = transaction.connection
    old = get(connection, namespace, digest)
    changed = labels.changed(old.labels, new.labels, fields)
    labels.validate(changed)
    connection.execute(
        "UPDATE blobs SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
        (pack(changed), now(), namespace, digest),
    )
    node = edges.content(digest)
    edges.state(connection, namespace, node, changed)
    transaction.deletion = edges.weaker(node, old.labels, changed)
    return get(connection, namespace, digest)


def discard(connection: sqlite3.Connection, namespace: str, digest: str, size: int) -> bool:
    """Remove a blob's record with what it states; True if the back end is to delete it."""
    connection.execute("DELETE FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest))
    edges.forget(connection, namespace, edges.content(digest))
    return tombstones.bury_content(connection, digest, size)


def find_ingest(connection: sqlite3.Connection, namespace: str, ref: str) -> Ingest | None:
    row = connection.execute(
        "SELECT backend_ref, expected, total, shared FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)
    ).fetchone()
    if row is None:
        return None
    expected = None if row[1] is None else Digest(row[1])
    return Ingest(ref=ref, backend_ref=row[0], expected=expected, total=row[2], shared=bool(row[3]))


def get_ingest(connection: sqlite3.Connection, namespace: str, ref: str) -> Ingest:
    ingest = find_ingest(connection, namespace, ref)
    if ingest is None:
        raise NotFound(f"ingest {ref!r} does not exist")
    return ingest


def open_ingest(
    connection: sqlite3.Connection,
    namespace: str,
    ingest: Ingest,
    lease: str | None,
) -> Ingest:
    """Write an ingest's row, or renew it. A lease holds it, or it expires.

    Its back-end ref stays, unless it becomes a shared one: such an ingest ends without the back end being asked,
    which would keep the bytes that were written before for ever.
    """
    namespaces.ensure(connection, namespace)
    old = find_ingest(connection, namespace, ingest.ref)
    written = old is not None and ingest.shared and not old.shared
    if old is None or written:
        backend_ref = tombstones.backend_key(connection, namespace, ingest.ref)
    else:
        backend_ref = old.backend_ref
    if old is not None and written:
        tombstones.bury_ingest(connection, old.backend_ref, old.expected, awaited=True)
    opened = now()
    connection.execute(
        "INSERT INTO ingests "
        "(namespace, ref, backend_ref, expected, total, shared, started_at, updated_at, expires_at) "
        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8) ON CONFLICT (namespace, ref) DO UPDATE SET "
        "backend_ref = ?3, expected = ?4, total = ?5, shared = ?6, updated_at = ?7, "
        "expires_at = coalesce(?8, expires_at)",
        (
            namespace,
            ingest.ref,
            backend_ref,
            ingest.expected,
            ingest.total,
            int(ingest.shared),
            opened,
            None if lease else opened + INGEST_SECONDS * 1_000_000,
        ),
    )
    leases.hold(connection, namespace, lease, Resource(type="ingests", id=ingest.ref))
    references = [(edges.content(ingest.expected), "target")] if ingest.shared and ingest.expected else []
    edges.state(connection, namespace, edges.ingest(ingest.ref), {}, references=references)
    if old is not None:
        _let_go(connection, old)
    return get_ingest(connection, namespace, ingest.ref)


def _let_go(connection: sqlite3.Connection, ingest: Ingest) -> None:
    """An ingest no longer keeps a blob that every namespace may have deleted meanwhile."""
    if ingest.shared and ingest.expected is not None:
        tombstones.bury_content(connection, ingest.expected, 0)


def expect(connection: sqlite3.Connection, namespace: str, ref: str, digest: Digest) -> None:
    """Note what an ingest is about to become, so that a crash leaves no blob that nobody knows of.

    It no longer keeps a blob that it might have become without a byte written.

    Raises:
        NotFound: it was aborted, or it expired.
    """
    old = get_ingest(connection, namespace, ref)
    connection.execute(
        "UPDATE ingests SET expected = ?, shared = 0 WHERE namespace = ? AND ref = ?", (digest, namespace, ref)
    )
    edges.state(connection, namespace, edges.ingest(ref), {})
    _let_go(connection, old)


def must_be_shared(connection: sqlite3.Connection, namespace: str, ref: str, digest: Digest) -> None:
    """Raises NotFound where neither the ingest nor a record keeps the blob: the back end may have deleted it."""
    ingest = find_ingest(connection, namespace, ref)
    kept = ingest is not None and ingest.shared and ingest.expected == digest
    if not kept and find(connection, namespace, digest) is None:
        raise NotFound(f"ingest {ref!r} of content {digest} was aborted meanwhile")


def close_ingest(connection: sqlite3.Connection, namespace: str, ref: str) -> None:
    """Remove the row of an ingest that the back end no longer has, and take it from every lease."""
    connection.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref))
    node = edges.ingest(ref)
    edges.forget(connection, namespace, node)
    sources = connection.execute(
        "DELETE FROM edges WHERE namespace = ? AND destination = ? AND kind IN ('ref', 'flat') "
        "AND source LIKE 'leases/%' RETURNING source",
        (namespace, node),
    ).fetchall()
    # Found by their edges: what all leases hold together may be very much.
    connection.executemany(
        "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = 'ingests' AND id = ?",
        [(namespace, source.removeprefix("leases/"), ref) for (source,) in sources],
    )


def finish_ingest(connection: sqlite3.Connection, namespace: str, ref: str) -> None:
    """Remove the row of an ingest that has become a blob.

    Where it was opened more than once, somebody else may only now begin it anew at the back end, under its old name:
    two clients that fetch the same layer write to the same ref.
    """
    row = connection.execute(
        "SELECT backend_ref FROM ingests WHERE namespace = ? AND ref = ? AND NOT shared AND updated_at > started_at",
        (namespace, ref),
    ).fetchone()
    close_ingest(connection, namespace, ref)
    if row is not None:
        tombstones.bury_ingest(connection, row[0], None, awaited=True, later=True)


def discard_ingest(connection: sqlite3.Connection, namespace: str, ref: str) -> None:
    """Remove an ingest; the back end is to forget it, and the blob that it may have become without our knowledge."""
    ingest = find_ingest(connection, namespace, ref)
    close_ingest(connection, namespace, ref)
    if ingest is not None:
        tombstones.bury_ingest(connection, ingest.backend_ref, None if ingest.shared else ingest.expected)
        _let_go(connection, ingest)


@dataclass(frozen=True, slots=True)
class Earlier:
    """An ingest that was opened before this process began."""

    namespace: str
    ref: str
    backend_ref: str


def ingests_before(connection: sqlite3.Connection, moment: int) -> list[Earlier]:
    rows = connection.execute(
        "SELECT namespace, ref, backend_ref FROM ingests WHERE updated_at < ? AND NOT shared", (moment,)
    )
    return [Earlier(*row) for row in rows]


def discard_ingests(connection: sqlite3.Connection, ingests: Iterable[Earlier], moment: int) -> bool:
    """Remove those that nobody has opened since that moment; True if there was one."""
    before = set(ingests_before(connection, moment)) & set(ingests)
    for ingest in before:
        discard_ingest(connection, ingest.namespace, ingest.ref)
    return bool(before)


def shareable(
    connection: sqlite3.Connection, digest: str, *, shared: bool = False, isolated: frozenset[str] = frozenset()
) -> bool:
    """Whether a namespace has the blob that gives its content away.

    With `shared`, those are all but the isolated ones. One that has the label containerd.io/namespace.shareable offers
    its content to all, an isolated one in no case.
    """
    rows = connection.execute("SELECT namespace FROM blobs WHERE digest = ?", (digest,)).fetchall()
    others = [name for (name,) in rows if name not in isolated]
    if shared:
        return bool(others)
    return any(namespaces.default_label(connection, name, labels.NAMESPACE_SHAREABLE) == "true" for name in others)
