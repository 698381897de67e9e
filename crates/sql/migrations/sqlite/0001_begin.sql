-- Sandboxes: `body` is the whole as JSON; the other columns repeat what queries need, and beat the body where the two
-- differ. Losing a row loses the sandbox: its node is told to end it.
CREATE TABLE sandboxes (
    id         TEXT    NOT NULL PRIMARY KEY,
    team       TEXT    NOT NULL,
    template   TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    -- What clients see: 0 running, 1 paused, NULL nothing (not yet, or not any more).
    state      INTEGER,
    -- Microseconds since 1970, as everywhere below.
    started_us INTEGER NOT NULL,
    -- When it was stored as gone; NULL as long as it is not.
    gone_us    INTEGER,
    body       TEXT    NOT NULL
) STRICT;

-- Lists and counts touch what clients see, in the order in which they see it; the reconciler touches what lives, and
-- what is long gone.
CREATE INDEX sandboxes_seen ON sandboxes (team, started_us DESC, id ASC, state) WHERE state IS NOT NULL;
CREATE INDEX sandboxes_gone ON sandboxes (gone_us);

-- Templates. Names are unique within a team; counters are columns, so that counting a spawn rewrites no body.
CREATE TABLE templates (
    id              TEXT    NOT NULL PRIMARY KEY,
    team            TEXT    NOT NULL,
    public          INTEGER NOT NULL,
    created_us      INTEGER NOT NULL,
    spawn_count     INTEGER NOT NULL,
    last_spawned_us INTEGER,
    body            TEXT    NOT NULL
) STRICT;
CREATE INDEX templates_of_team ON templates (team, created_us);

CREATE TABLE template_names (
    team     TEXT NOT NULL,
    name     TEXT NOT NULL,
    template TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    PRIMARY KEY (team, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX template_names_by_name ON template_names (name);
CREATE INDEX template_names_by_template ON template_names (template);

-- Teams, and their API keys. Of a key only its hash is kept: losing this table locks everybody out, leaking it lets
-- nobody in.
CREATE TABLE teams (
    id   TEXT NOT NULL PRIMARY KEY,
    slug TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id           TEXT    NOT NULL PRIMARY KEY,
    team         TEXT    NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name         TEXT    NOT NULL,
    hash         TEXT    NOT NULL UNIQUE,
    mask_prefix  TEXT    NOT NULL,
    mask_suffix  TEXT    NOT NULL,
    created_us   INTEGER NOT NULL,
    last_used_us INTEGER
) STRICT;
CREATE INDEX api_keys_of_team ON api_keys (team, created_us);

-- Secrets of the whole installation, by name. Losing `seed` changes the tokens of all sandboxes.
CREATE TABLE secrets (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
