-- Events on their way to metadatad, in the order they came.
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp TEXT NOT NULL,
    namespace TEXT NOT NULL,
    topic TEXT NOT NULL,
    type_url TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;

-- Processes that have been reported to exist and not yet to have ended. `exec_id` is empty for a task's first process.
CREATE TABLE processes (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    exec_id TEXT NOT NULL,
    pid INTEGER NOT NULL,
    PRIMARY KEY (namespace, id, exec_id)
) STRICT, WITHOUT ROWID;

-- Tasks that have been reported to exist and not yet to be deleted.
CREATE TABLE tasks (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;

-- Ends that have been reported: each is reported once.
CREATE TABLE exits (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    exec_id TEXT NOT NULL,
    pid INTEGER NOT NULL,
    reported REAL NOT NULL,
    PRIMARY KEY (namespace, id, exec_id, pid)
) STRICT, WITHOUT ROWID;

CREATE INDEX exits_by_time ON exits (reported);
