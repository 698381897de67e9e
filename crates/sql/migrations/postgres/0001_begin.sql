-- oldest: 1
--
-- What SQLite keeps after its migration 0003, as PostgreSQL keeps it. `oldest` is the oldest generation of programs that may
-- still run over this schema: see src/postgres/schema.rs for what a later migration may do.
--
-- Texts compare by their bytes, as ids do everywhere else: COLLATE "C". Times are microseconds since 1970.

-- Sandboxes: `body` is the whole as JSON; the other columns repeat what queries need, and beat the body where the two
-- differ. It is a text and no jsonb: jsonb has no U+0000, and users have it. Losing a row loses the sandbox: its node is told
-- to end it.
CREATE TABLE sandboxes (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    team       TEXT COLLATE "C" NOT NULL,
    template   TEXT COLLATE "C" NOT NULL,
    version    BIGINT           NOT NULL,
    -- What clients see: 0 running, 1 paused, NULL nothing (not yet, or not any more).
    state      SMALLINT,
    started_us BIGINT           NOT NULL,
    -- When it was stored as gone, by the database's clock; NULL as long as it is not.
    gone_us    BIGINT,
    -- {team: metadata}, so that one index finds a pair of one team; NULL where there is no metadata.
    labels     JSONB,
    body       TEXT             NOT NULL
-- Room for an update beside the row that it replaces; a fleet's statistics change faster than a fifth of its rows.
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- Lists, newest first or, backwards, oldest first: a page begins where its cursor is, however many have the same time. `state`
-- comes before the time where one state is asked for, and behind it where the template is.
CREATE INDEX sandboxes_seen ON sandboxes (team, (-started_us), id) WHERE state IS NOT NULL;
CREATE INDEX sandboxes_in_state ON sandboxes (team, state, (-started_us), id) WHERE state IS NOT NULL;
CREATE INDEX sandboxes_of_template ON sandboxes (team, template, (-started_us), id, state) WHERE state IS NOT NULL;
-- By the hash of the path, so that a label may be as long as it likes. Without the list of pending entries, which the next
-- reader would have to walk.
CREATE INDEX sandboxes_labels ON sandboxes USING gin (labels jsonb_path_ops) WITH (fastupdate = off)
    WHERE state IS NOT NULL AND labels IS NOT NULL;
-- The reconciler touches what lives, in pages; and what is long gone.
CREATE INDEX sandboxes_live ON sandboxes (id) WHERE gone_us IS NULL;
CREATE INDEX sandboxes_gone ON sandboxes (gone_us) WHERE gone_us IS NOT NULL;

-- How many of a team's sandboxes clients see in each state: to count a hundred thousand each time that a page is asked for would
-- take longer than the page. Each connection counts in a row of its own, by its number, so that few wait for each other; the sum
-- is what counts, and one row alone may be negative. Kept by triggers, in the transaction of what they count.
CREATE TABLE sandbox_counts (
    team  TEXT COLLATE "C" NOT NULL,
    state SMALLINT         NOT NULL,
    shard SMALLINT         NOT NULL,
    count BIGINT           NOT NULL,
    PRIMARY KEY (team, state, shard)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- In the order of states, as everybody does, so that no two wait for each other.
CREATE FUNCTION count_sandbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sandbox_counts AS counted (team, state, shard, count)
    SELECT change.team, change.state, pg_backend_pid() % 64, sum(change.by)
    FROM (VALUES (OLD.team, OLD.state, -1), (NEW.team, NEW.state, 1)) AS change (team, state, by)
    WHERE change.state IS NOT NULL
    GROUP BY change.team, change.state
    ORDER BY change.team, change.state
    ON CONFLICT (team, state, shard) DO UPDATE SET count = counted.count + excluded.count;
    RETURN NULL;
END $$;
CREATE TRIGGER sandbox_came AFTER INSERT ON sandboxes
    FOR EACH ROW WHEN (NEW.state IS NOT NULL) EXECUTE FUNCTION count_sandbox();
CREATE TRIGGER sandbox_changed AFTER UPDATE ON sandboxes
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.team <> NEW.team) EXECUTE FUNCTION count_sandbox();
CREATE TRIGGER sandbox_went AFTER DELETE ON sandboxes
    FOR EACH ROW WHEN (OLD.state IS NOT NULL) EXECUTE FUNCTION count_sandbox();

-- Templates. Names are unique within a team; counters are columns, so that counting a spawn rewrites no body.
CREATE TABLE templates (
    id              TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    team            TEXT COLLATE "C" NOT NULL,
    public          BOOLEAN          NOT NULL,
    created_us      BIGINT           NOT NULL,
    spawn_count     BIGINT           NOT NULL,
    last_spawned_us BIGINT,
    version         BIGINT           NOT NULL,
    -- What its tags name.
    builds          TEXT[]           NOT NULL,
    body            TEXT             NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX templates_of_team ON templates (team, created_us, id);

CREATE TABLE template_names (
    team     TEXT COLLATE "C" NOT NULL,
    name     TEXT COLLATE "C" NOT NULL,
    template TEXT COLLATE "C" NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    PRIMARY KEY (team, name)
);
CREATE INDEX template_names_by_name ON template_names (name);
CREATE INDEX template_names_by_template ON template_names (template);

-- Builds of templates: `body` is the whole as JSON, as above. Losing them loses the history of builds and those that are
-- under way, not their results.
CREATE TABLE builds (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    template   TEXT COLLATE "C" NOT NULL,
    version    BIGINT           NOT NULL,
    -- Whether it changes no more.
    is_over    BOOLEAN          NOT NULL,
    created_us BIGINT           NOT NULL,
    -- How many lines its log has. Whoever adds some takes their places here first.
    lines      BIGINT           NOT NULL DEFAULT 0,
    body       TEXT             NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX builds_of_template ON builds (template, created_us DESC, id);
CREATE INDEX builds_unfinished ON builds (created_us, id) WHERE NOT is_over;

-- Their logs. `seq` counts a build's lines from 0, without gaps: an offset is a place.
CREATE TABLE build_lines (
    build TEXT COLLATE "C" NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    seq   BIGINT           NOT NULL,
    -- How urgent: 0 debug, 1 info, 2 warn, 3 error.
    level SMALLINT         NOT NULL,
    body  TEXT             NOT NULL,
    PRIMARY KEY (build, seq)
);

-- Results of steps, by what they were made of. Losing them costs the time to make them again.
CREATE TABLE cached_steps (
    team    TEXT COLLATE "C" NOT NULL,
    key     TEXT COLLATE "C" NOT NULL,
    build   TEXT COLLATE "C" NOT NULL,
    -- With what the next step runs, as JSON.
    context TEXT             NOT NULL,
    -- When it was last of use.
    used_us BIGINT           NOT NULL,
    PRIMARY KEY (team, key)
);
CREATE INDEX cached_steps_by_build ON cached_steps (build);

-- Builds that the blobs hold, by the digest of what describes them there. Losing a row loses what the blobs hold of it: it
-- is swept, and brought there again while a node has the build.
CREATE TABLE stowed_builds (
    build  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    digest TEXT             NOT NULL
);

-- Volumes. Losing a row loses the name of what lies on a node, which is then found by nobody.
CREATE TABLE volumes (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    team       TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    created_us BIGINT           NOT NULL,
    body       TEXT             NOT NULL,
    UNIQUE (team, name)
);
CREATE INDEX volumes_of_team ON volumes (team, created_us, id);

-- Teams, and their API keys. Of a key only its hash is kept: losing this table locks everybody out, leaking it lets
-- nobody in. `seq` is the order of their creation; `quota` is JSON, and beats the body.
CREATE TABLE teams (
    id    TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seq   BIGINT           NOT NULL GENERATED ALWAYS AS IDENTITY,
    slug  TEXT COLLATE "C" NOT NULL UNIQUE,
    quota TEXT             NOT NULL,
    body  TEXT             NOT NULL
);

CREATE TABLE api_keys (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seq          BIGINT           NOT NULL GENERATED ALWAYS AS IDENTITY,
    team         TEXT COLLATE "C" NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name         TEXT             NOT NULL,
    hash         TEXT COLLATE "C" NOT NULL UNIQUE,
    mask_prefix  TEXT             NOT NULL,
    mask_suffix  TEXT             NOT NULL,
    created_us   BIGINT           NOT NULL,
    last_used_us BIGINT
) WITH (fillfactor = 50);
CREATE INDEX api_keys_of_team ON api_keys (team, created_us, seq);

-- Secrets of the whole installation, by name. Losing `seed` changes the tokens of all sandboxes.
CREATE TABLE secrets (
    name  TEXT  NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);
