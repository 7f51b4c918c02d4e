-- Waiting events get a source, which metadatad knows them by together with the number, and are bounded in bytes.
ALTER TABLE events RENAME TO events_before;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,       -- one for each start of taskd: a database that was put back repeats numbers, not sources
    position INTEGER NOT NULL,  -- bytes of all events up to this one, from some beginning on
    timestamp TEXT NOT NULL,
    namespace TEXT NOT NULL,
    topic TEXT NOT NULL,
    type_url TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;
INSERT INTO events
    SELECT number, lower(hex(randomblob(16))), sum(length(value) + 256) OVER (ORDER BY number),
           timestamp, namespace, topic, type_url, value
    FROM events_before;
DROP TABLE events_before;
