-- What shims have told: one whose call was cut off tells it again, with the same moment and the same bytes.
CREATE TABLE seen (
    fingerprint BLOB PRIMARY KEY,
    told REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX seen_by_time ON seen (told);
