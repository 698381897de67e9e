-- What 0001 kept of a template beside its tags belongs to each of its builds from now on, and is copied into the
-- sandboxes that began with it. Sandboxes go first: they read the templates as they were. For one whose template is gone
-- nothing is known, and the program takes the defaults.
UPDATE sandboxes SET body = json_set(sandboxes.body, '$.settings', json((
    SELECT json_object(
        'resources',  json(templates.body -> '$.resources'),
        'env',        json(templates.body -> '$.env'),
        'user',       templates.body ->> '$.user',
        'workdir',    templates.body ->> '$.workdir',
        'start',      json(templates.body -> '$.start'),
        'memory',     'none',
        'created_at', json(templates.body -> '$.created_at'))
    FROM templates WHERE templates.id = sandboxes.template)))
WHERE template IN (SELECT id FROM templates);

-- Until now a pause that kept the memory kept it in the machine's.
UPDATE sandboxes SET body = json_set(body, '$.kept', 'volatile')
WHERE (body ->> '$.phase.phase' = 'paused' AND body ->> '$.phase.mode' = 'full')
   -- A resume that was under way falls back to what the pause kept.
   OR body ->> '$.phase.from.snapshot.mode' = 'full';

UPDATE templates SET body = json_remove(
    json_set(body, '$.builds', json((
        SELECT json_group_object(tagged.build, json_object(
            'resources',  json(templates.body -> '$.resources'),
            'env',        json(templates.body -> '$.env'),
            'user',       templates.body ->> '$.user',
            'workdir',    templates.body ->> '$.workdir',
            'start',      json(templates.body -> '$.start'),
            'memory',     'none',
            'created_at', json(templates.body -> '$.created_at')))
        FROM (SELECT DISTINCT value AS build FROM json_each(templates.body, '$.tags')) AS tagged))),
    '$.resources', '$.env', '$.user', '$.workdir', '$.start');

-- Counts the writes of a template, as that of sandboxes does; it beats the body.
ALTER TABLE templates ADD COLUMN version INTEGER NOT NULL DEFAULT 0;

-- Builds of templates: `body` is the whole as JSON, as above. Losing them loses the history of builds and those that are
-- under way, not their results.
CREATE TABLE builds (
    id         TEXT    NOT NULL PRIMARY KEY,
    template   TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    -- Whether it changes no more.
    is_over    INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    body       TEXT    NOT NULL
) STRICT;
CREATE INDEX builds_of_template ON builds (template, created_us DESC, id ASC);
CREATE INDEX builds_unfinished ON builds (created_us, id) WHERE NOT is_over;

-- Their logs. `seq` counts a build's lines from 0, without gaps: an offset is a place.
CREATE TABLE build_lines (
    build TEXT    NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    seq   INTEGER NOT NULL,
    -- How urgent: 0 debug, 1 info, 2 warn, 3 error.
    level INTEGER NOT NULL,
    body  TEXT    NOT NULL,
    PRIMARY KEY (build, seq)
) STRICT, WITHOUT ROWID;

-- Results of steps, by what they were made of. Losing them costs the time to make them again.
CREATE TABLE cached_steps (
    team    TEXT    NOT NULL,
    key     TEXT    NOT NULL,
    build   TEXT    NOT NULL,
    -- With what the next step runs, as JSON.
    context TEXT    NOT NULL,
    -- When it was last of use.
    used_us INTEGER NOT NULL,
    PRIMARY KEY (team, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX cached_steps_by_build ON cached_steps (build, used_us);

-- Volumes. Losing a row loses the name of what lies on a node, which is then found by nobody.
CREATE TABLE volumes (
    id         TEXT    NOT NULL PRIMARY KEY,
    team       TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    created_us INTEGER NOT NULL,
    body       TEXT    NOT NULL,
    UNIQUE (team, name)
) STRICT;
CREATE INDEX volumes_of_team ON volumes (team, created_us, id);
