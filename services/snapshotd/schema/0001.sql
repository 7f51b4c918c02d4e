-- One snapshotter's snapshots. `id` names the directory; AUTOINCREMENT: an id is never given twice.
-- Times are whole microseconds since 1970, UTC. Labels are a JSON object.

CREATE TABLE snapshots (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL UNIQUE,
    kind        INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    parent_id   INTEGER REFERENCES snapshots (id),
    labels      TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    size        INTEGER NOT NULL DEFAULT 0,
    inodes      INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX snapshots_by_parent ON snapshots (parent_id);
