-- Back ends that were moved to another place than the configuration (or `backends`) has for them.
CREATE TABLE swaps (
    type        TEXT NOT NULL,                  -- content | snapshot | diff
    name        TEXT NOT NULL,
    place       TEXT NOT NULL,                  -- address, namespace, snapshotter, lease
    home        TEXT NOT NULL,                  -- the configured place: with another one, the row counts no more
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (type, name)
) STRICT, WITHOUT ROWID;

-- Snapshots that stayed where they were when their snapshotter was moved: they may be mounted.
CREATE TABLE stays (
    snapshotter TEXT NOT NULL,
    backend_key TEXT NOT NULL,
    place       TEXT NOT NULL,
    PRIMARY KEY (snapshotter, backend_key)
) STRICT, WITHOUT ROWID;
