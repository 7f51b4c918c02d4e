-- Snapshots that the back end may yet make: a call that was given up, because it hung, may be carried out later.

-- Until then an object that is not there is looked for again, since it would keep its parent for ever.
ALTER TABLE tombstones ADD COLUMN until INTEGER NOT NULL DEFAULT 0;
-- The next look.
ALTER TABLE tombstones ADD COLUMN due INTEGER NOT NULL DEFAULT 0;
