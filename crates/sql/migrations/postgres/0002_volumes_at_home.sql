-- oldest: 1
--
-- Counts the writes of a volume, as that of sandboxes does; it beats the body. Bodies say from now on on which node the files
-- lie (`home`), and what may be done with them (`state`). Programs of generation 1 refuse volumes, and so have none.
ALTER TABLE volumes ADD COLUMN version BIGINT NOT NULL DEFAULT 0;

-- Volumes that were given up: nobody finds them any more, and their files are to be removed from their nodes. Losing a row
-- leaves files on a node that nobody wants.
CREATE TABLE volume_remains (
    id   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    body TEXT             NOT NULL
);
