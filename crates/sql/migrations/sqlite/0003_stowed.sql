-- Builds that the blobs hold, by the digest of what describes them there. Losing a row loses what the blobs hold of it: it
-- is swept, and brought there again while a node has the build.
CREATE TABLE stowed_builds (
    build  TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL
) STRICT, WITHOUT ROWID;
