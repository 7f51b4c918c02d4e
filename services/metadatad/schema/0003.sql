-- What may have become garbage, so that a collection need not look at everything.
--
-- Always: what nothing keeps is a candidate, or can be reached from a candidate that nothing keeps, or keeps flatly.
-- Triggers note candidates, so that no way of changing a record can forget them.
-- A row stays until a collection has found its node alive, or removed it.
CREATE TABLE candidates (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: a candidate that is noted again gets a new one
    namespace   TEXT NOT NULL,
    node        TEXT NOT NULL,                  -- there need not be such an object, others may say that it keeps them
    reason      TEXT NOT NULL,                  -- lost | new | expiry | lapse | missed
    due         INTEGER NOT NULL,               -- to be looked at from this moment on; 0: at once
    noted_at    INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)),
    UNIQUE (namespace, node, reason, due)
) STRICT;
CREATE INDEX candidates_by_due ON candidates (due, id);

-- checked_at: begin of the last full mark; check_due: 1 until one has run; running: 1 until an orderly end.
CREATE TABLE collector (
    name        TEXT PRIMARY KEY,
    value       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO collector (name, value) VALUES ('check_due', 1);

-- What an object states of others that keep it; a popular blob has many references that are not its own.
CREATE INDEX edges_stated_by_destination ON edges (namespace, destination, kind) WHERE kind IN ('bref', 'cond');

-- An insert here notes a candidate. (`INSERT OR REPLACE` in a trigger would follow the conflict clause, if there is
-- one, of the statement that fired it.)
CREATE VIEW noted AS SELECT namespace, node, reason, due FROM candidates;
CREATE TRIGGER note INSTEAD OF INSERT ON noted BEGIN
    DELETE FROM candidates
    WHERE namespace = new.namespace AND node = new.node AND reason = new.reason AND due = new.due;
    INSERT INTO candidates (namespace, node, reason, due) VALUES (new.namespace, new.node, new.reason, new.due);
END;

CREATE TRIGGER edge_lost AFTER DELETE ON edges BEGIN
    INSERT INTO noted VALUES (old.namespace, old.destination, 'lost', 0);
END;

CREATE TRIGGER pin_lost AFTER DELETE ON pins BEGIN
    DELETE FROM candidates
    WHERE namespace = old.namespace AND node = old.node AND reason = 'expiry' AND due = old.until + 1;
    INSERT INTO noted VALUES (old.namespace, old.node, 'lost', 0);
END;
CREATE TRIGGER pin_expires AFTER INSERT ON pins WHEN new.until IS NOT NULL BEGIN
    INSERT INTO noted VALUES (new.namespace, new.node, 'expiry', new.until + 1);
END;

CREATE TRIGGER blob_made AFTER INSERT ON blobs BEGIN
    INSERT INTO noted VALUES (new.namespace, 'content/' || new.digest, 'new', 0);
END;
CREATE TRIGGER snapshot_made AFTER INSERT ON snapshots BEGIN
    INSERT INTO noted VALUES (new.namespace, 'snapshots/' || new.snapshotter || '/' || new.key, 'new', 0);
END;

-- Without an expiry of its own a lease holds it.
CREATE TRIGGER ingest_made AFTER INSERT ON ingests BEGIN
    INSERT INTO noted VALUES (
        new.namespace, 'ingests/' || new.ref, iif(new.expires_at IS NULL, 'new', 'expiry'),
        coalesce(new.expires_at + 1, 0));
END;
CREATE TRIGGER ingest_renewed AFTER UPDATE OF expires_at ON ingests WHEN new.expires_at IS NOT old.expires_at BEGIN
    DELETE FROM candidates
    WHERE namespace = old.namespace AND node = 'ingests/' || old.ref AND reason = 'expiry' AND due = old.expires_at + 1;
    INSERT INTO noted VALUES (
        new.namespace, 'ingests/' || new.ref, iif(new.expires_at IS NULL, 'lost', 'expiry'),
        coalesce(new.expires_at + 1, 0));
END;
CREATE TRIGGER ingest_gone AFTER DELETE ON ingests BEGIN
    DELETE FROM candidates
    WHERE namespace = old.namespace AND node = 'ingests/' || old.ref
        AND (reason = 'expiry' AND due = old.expires_at + 1 OR reason = 'new');
END;

-- What is no longer there keeps nothing that says it belongs to it. Nothing can say so of the other kinds of roots.
CREATE TRIGGER image_gone AFTER DELETE ON images BEGIN
    INSERT INTO noted VALUES (old.namespace, 'images/' || old.name, 'lost', 0);
END;
CREATE TRIGGER container_gone AFTER DELETE ON containers BEGIN
    INSERT INTO noted VALUES (old.namespace, 'containers/' || old.id, 'lost', 0);
END;

-- A call to a snapshotter that is under way keeps what it works on.
CREATE TRIGGER intent_ended AFTER DELETE ON intents BEGIN
    INSERT INTO noted
    SELECT old.namespace, 'snapshots/' || old.snapshotter || '/' || key, 'lost', 0
    FROM (SELECT old.details ->> 'parent' AS key UNION SELECT old.details ->> 'source') WHERE key <> '';
END;

-- Labels of a snapshot say whether conditional references from it hold, and for how long:
-- the collection that looks at the destination notes when.
CREATE TRIGGER condition_stated AFTER INSERT ON edges WHEN new.kind = 'cond' BEGIN
    INSERT INTO noted VALUES (new.namespace, new.destination, 'lapse', 0);
END;
CREATE TRIGGER condition_begun AFTER INSERT ON snapshots BEGIN
    INSERT INTO noted SELECT DISTINCT namespace, destination, 'lapse', 0 FROM edges
    WHERE namespace = new.namespace AND source = 'snapshots/' || new.snapshotter || '/' || new.key AND kind = 'cond';
END;
CREATE TRIGGER condition_changed AFTER UPDATE OF labels ON snapshots BEGIN
    INSERT INTO noted SELECT DISTINCT namespace, destination, 'lapse', 0 FROM edges
    WHERE namespace = new.namespace AND source = 'snapshots/' || new.snapshotter || '/' || new.key AND kind = 'cond';
END;
CREATE TRIGGER condition_ended AFTER DELETE ON snapshots BEGIN
    INSERT INTO noted SELECT DISTINCT namespace, destination, 'lapse', 0 FROM edges
    WHERE namespace = old.namespace AND source = 'snapshots/' || old.snapshotter || '/' || old.key AND kind = 'cond';
END;

-- What is there already. Garbage that is there already is found by the full mark.
INSERT INTO noted SELECT namespace, node, 'expiry', until + 1 FROM pins WHERE until IS NOT NULL;
INSERT INTO noted SELECT namespace, 'ingests/' || ref, 'expiry', expires_at + 1 FROM ingests
    WHERE expires_at IS NOT NULL;
INSERT INTO noted SELECT DISTINCT namespace, destination, 'lapse', 0 FROM edges WHERE kind = 'cond';
