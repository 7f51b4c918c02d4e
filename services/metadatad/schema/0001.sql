-- The metadata database.
--
-- Times are whole microseconds since 1970, UTC. Labels, annotations and other maps are JSON objects as text.
-- A namespace row exists before anything in it does (made implicitly where the client did not: `namespaces.ensure`).
-- A *node* is the name of an object in the reference graph, as text:
--   content/DIGEST  snapshots/SNAPSHOTTER/KEY  images/NAME  containers/ID  sandboxes/ID  leases/ID  ingests/REF

CREATE TABLE namespaces (
    name        TEXT PRIMARY KEY,
    labels      TEXT NOT NULL DEFAULT '{}'
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    namespace   TEXT NOT NULL REFERENCES namespaces (name),
    name        TEXT NOT NULL,
    media_type  TEXT NOT NULL,
    digest      TEXT NOT NULL,
    size        INTEGER NOT NULL,
    annotations TEXT NOT NULL DEFAULT '{}',
    labels      TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    namespace       TEXT NOT NULL REFERENCES namespaces (name),
    id              TEXT NOT NULL,
    labels          TEXT NOT NULL DEFAULT '{}',
    image           TEXT NOT NULL DEFAULT '',
    runtime         TEXT NOT NULL,
    options_url     TEXT,                       -- the runtime's options: both or neither
    options         BLOB,
    spec_url        TEXT,                       -- the specification: both or neither
    spec            BLOB,
    snapshotter     TEXT NOT NULL DEFAULT '',
    snapshot_key    TEXT NOT NULL DEFAULT '',
    sandbox         TEXT NOT NULL DEFAULT '',
    extensions      TEXT NOT NULL DEFAULT '{}', -- name -> [type URL, base64]
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) STRICT;

CREATE TABLE sandboxes (
    namespace       TEXT NOT NULL REFERENCES namespaces (name),
    id              TEXT NOT NULL,
    labels          TEXT NOT NULL DEFAULT '{}',
    runtime         TEXT NOT NULL,
    options_url     TEXT,
    options         BLOB,
    spec_url        TEXT,
    spec            BLOB,
    sandboxer       TEXT NOT NULL DEFAULT '',
    extensions      TEXT NOT NULL DEFAULT '{}',
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) STRICT;

CREATE TABLE leases (
    namespace   TEXT NOT NULL REFERENCES namespaces (name),
    id          TEXT NOT NULL,
    labels      TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;

-- What a lease holds; the resource need not exist yet. Each row has its row in `edges`
-- (source the lease, kind `ref`, or `flat` where the lease has the label containerd.io/gc.flat).
CREATE TABLE lease_resources (
    namespace   TEXT NOT NULL,
    lease       TEXT NOT NULL,
    type        TEXT NOT NULL,                  -- content | ingests | images | snapshots/SNAPSHOTTER
    id          TEXT NOT NULL,                  -- digest, ref, name or key
    PRIMARY KEY (namespace, lease, type, id),
    FOREIGN KEY (namespace, lease) REFERENCES leases (namespace, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE blobs (
    namespace   TEXT NOT NULL REFERENCES namespaces (name),
    digest      TEXT NOT NULL,
    size        INTEGER NOT NULL,
    labels      TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_by_digest ON blobs (digest);     -- is a blob still recorded in any namespace?

CREATE TABLE ingests (
    namespace   TEXT NOT NULL REFERENCES namespaces (name),
    ref         TEXT NOT NULL,
    backend_ref TEXT NOT NULL UNIQUE,           -- the ref under which the back end knows it
    expected    TEXT,
    total       INTEGER NOT NULL DEFAULT 0,
    started_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    expires_at  INTEGER,                        -- null: no limit of its own (a lease holds it)
    PRIMARY KEY (namespace, ref)
) STRICT, WITHOUT ROWID;

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
    PRIMARY KEY (namespace, snapshotter, key),
    UNIQUE (snapshotter, backend_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_by_parent ON snapshots (namespace, snapshotter, parent);

-- Calls to a snapshotter that are under way: written before, removed with the record that the call leads to.
-- What a crash leaves here is settled at start-up. A row keeps its back-end key from being taken for garbage.
CREATE TABLE intents (
    id          INTEGER PRIMARY KEY,
    namespace   TEXT NOT NULL,
    snapshotter TEXT NOT NULL,
    action      TEXT NOT NULL,                  -- prepare | view | commit | remove
    key         TEXT NOT NULL,
    backend_key TEXT NOT NULL,
    details     TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX intents_by_key ON intents (snapshotter, backend_key);

-- The reference graph: `source` keeps `destination`, which need not exist (yet).
-- Kinds: target  image to content, container to snapshot, ingest to expected content   stated by the source
--        parent  snapshot to parent                                                     stated by the source
--        ref     a gc.ref.* label, or a lease to its resource                           stated by the source
--        flat    a flat lease to its resource: from there only `target` of an image     stated by the source
--                and `parent` of a snapshot are followed
--        bref    a gc.bref.* label of the destination                                   stated by the destination
--        cond    a gc.cond.* label of the destination, while `condition` holds          stated by the destination
CREATE TABLE edges (
    namespace   TEXT NOT NULL,
    source      TEXT NOT NULL,
    destination TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('target', 'parent', 'ref', 'flat', 'bref', 'cond')),
    condition   TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (namespace, source, destination, kind, condition)
) STRICT, WITHOUT ROWID;
CREATE INDEX edges_backwards ON edges (namespace, destination, source, kind);

-- What labels say of an object itself: containerd.io/gc.root (until is null), and containerd.io/gc.expire:
-- content and snapshots are roots until then; images and leases stop being roots then.
CREATE TABLE pins (
    namespace   TEXT NOT NULL,
    node        TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('root', 'expire')),
    until       INTEGER,
    PRIMARY KEY (namespace, node, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX pins_by_expiry ON pins (until) WHERE until IS NOT NULL;

-- Events in the order of their transactions; the oldest are trimmed.
CREATE TABLE events (
    sequence    INTEGER PRIMARY KEY AUTOINCREMENT,
    time        INTEGER NOT NULL,
    namespace   TEXT NOT NULL,
    topic       TEXT NOT NULL,
    type_url    TEXT NOT NULL,
    value       BLOB NOT NULL
) STRICT;

-- Plugins added while running, beside those of the configuration file.
CREATE TABLE backends (
    name        TEXT PRIMARY KEY,
    type        TEXT NOT NULL,                  -- content | snapshot | diff | sandbox
    address     TEXT NOT NULL,
    settings    TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
