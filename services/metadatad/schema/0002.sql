-- What the back ends hold for us, beside what the records say.

-- Snapshots of several namespaces may stand for one snapshot of a remote snapshotter (containerd.io/snapshot.ref).
ALTER TABLE snapshots RENAME TO snapshots_before;
DROP INDEX snapshots_by_parent;
CREATE TABLE snapshots (
    namespace   TEXT NOT NULL REFERENCES namespaces (name),
    snapshotter TEXT NOT NULL,
    key         TEXT NOT NULL,
    backend_key TEXT NOT NULL,                  -- the key under which the back end knows it
    kind        INTEGER NOT NULL,               -- carina.snapshots.Kind: 1 view, 2 active, 3 committed
    parent      TEXT NOT NULL DEFAULT '',       -- key in the same namespace and snapshotter
    labels      TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (namespace, snapshotter, key)
) STRICT, WITHOUT ROWID;
INSERT INTO snapshots SELECT * FROM snapshots_before;
DROP TABLE snapshots_before;
CREATE INDEX snapshots_by_parent ON snapshots (namespace, snapshotter, parent);
CREATE INDEX snapshots_by_backend_key ON snapshots (snapshotter, backend_key);

-- 1: nothing was written, the back end has a blob of the expected digest already; the ingest keeps it there.
ALTER TABLE ingests ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;
CREATE INDEX ingests_by_expected ON ingests (expected) WHERE expected IS NOT NULL;

-- The last number given out for a back-end ref or key. Numbers are never used twice.
CREATE TABLE sequences (
    name        TEXT PRIMARY KEY,
    value       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Objects of back ends that are to be removed there, written with the removal of the record.
-- A row goes when the back end no longer has the object, or when a record refers to the object again.
-- The collector removes only what is listed here: an object that we never recorded is never touched.
CREATE TABLE tombstones (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    type        TEXT NOT NULL,                  -- content | ingest | snapshot
    backend     TEXT NOT NULL,                  -- name of the snapshotter; empty for content and ingests
    key         TEXT NOT NULL,                  -- digest, back-end ref or back-end key
    size        INTEGER NOT NULL DEFAULT 0,
    expected    TEXT,                           -- of an ingest: the blob that it may have become without our knowledge
    created_at  INTEGER NOT NULL,
    UNIQUE (type, backend, key)
) STRICT;
