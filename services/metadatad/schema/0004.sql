-- The log of events gets bounds in bytes, places by time, a history, and sources that number their events.

-- Sequences have no gaps: the log loses events at its old end alone. `recorded` and `position` never fall.
ALTER TABLE events RENAME TO events_before;
CREATE TABLE events (
    sequence    INTEGER PRIMARY KEY AUTOINCREMENT,
    recorded    INTEGER NOT NULL,               -- when it came
    position    INTEGER NOT NULL,               -- bytes of all events up to this one since the log began
    time        INTEGER NOT NULL,               -- when it happened
    namespace   TEXT NOT NULL,
    topic       TEXT NOT NULL,
    type_url    TEXT NOT NULL,
    value       BLOB NOT NULL
) STRICT;
INSERT INTO events
    SELECT sequence, max(time) OVER (ORDER BY sequence), sum(length(value) + 256) OVER (ORDER BY sequence),
           time, namespace, topic, type_url, value
    FROM events_before;
DROP TABLE events_before;

-- The history of the log: each start of the service begins a part with a name of its own, so that what a database
-- wrote after a backup, and what the same database wrote after it was restored, have different names.
CREATE TABLE epochs (
    first       INTEGER PRIMARY KEY,            -- the sequence that it begins with
    id          TEXT NOT NULL UNIQUE
) STRICT;
INSERT INTO epochs VALUES (0, lower(hex(randomblob(8))));

-- The highest number taken from each source that numbers its events.
CREATE TABLE sources (
    source      TEXT PRIMARY KEY,
    number      INTEGER NOT NULL,
    sequence    INTEGER NOT NULL                -- of the newest event when it was last heard of
) STRICT, WITHOUT ROWID;
