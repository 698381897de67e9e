-- Counts the writes of a volume, as that of sandboxes does; it beats the body. Bodies say from now on on which node the files
-- lie (`home`), and what may be done with them (`state`); one that does not lies on the one node, and is there.
ALTER TABLE volumes ADD COLUMN version INTEGER NOT NULL DEFAULT 0;

-- Volumes that were given up: nobody finds them any more, and their files are to be removed from their nodes. Losing a row
-- leaves files on a node that nobody wants.
CREATE TABLE volume_remains (
    id   TEXT NOT NULL PRIMARY KEY,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
