-- Things with typed properties, and how they relate. All of it can be made again from what was told of it.

CREATE TABLE entities (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of creation; never used twice
    id         TEXT    NOT NULL UNIQUE,
    type       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    created_us INTEGER NOT NULL,                   -- microseconds since 1970
    updated_us INTEGER NOT NULL
) STRICT;

CREATE INDEX entities_by_type ON entities (type, number);

-- A value is an integer, a real or a text, as it was given. Its kind parts true from 1, and null from nothing;
-- within a kind, values are ordered as people order them, and integers among reals.
CREATE TABLE entity_properties (
    owner INTEGER NOT NULL REFERENCES entities (number),
    name  TEXT    NOT NULL,
    type  TEXT    NOT NULL,                        -- of the entity: its values lie together in the index
    kind  TEXT    NOT NULL,
    value ANY     NOT NULL,                        -- a boolean's is 0 or 1, a null's 0
    PRIMARY KEY (owner, name),
    CHECK (CASE kind
        WHEN 'boolean' THEN typeof(value) = 'integer' AND value IN (0, 1)
        WHEN 'null'    THEN typeof(value) = 'integer' AND value = 0
        WHEN 'number'  THEN typeof(value) IN ('integer', 'real')
        WHEN 'text'    THEN typeof(value) = 'text'
        ELSE 0 END)
) STRICT, WITHOUT ROWID;

CREATE INDEX entity_properties_by_value ON entity_properties (type, name, kind, value, owner);

CREATE TABLE relationships (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    source     INTEGER NOT NULL REFERENCES entities (number),
    type       TEXT    NOT NULL,
    target     INTEGER NOT NULL REFERENCES entities (number),
    created_us INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX relationships_by_source ON relationships (source, type, target);
CREATE INDEX relationships_by_target ON relationships (target, type, source);
CREATE INDEX relationships_by_type ON relationships (type, number);

CREATE TABLE relationship_properties (
    owner INTEGER NOT NULL REFERENCES relationships (number),
    name  TEXT    NOT NULL,
    type  TEXT    NOT NULL,
    kind  TEXT    NOT NULL,
    value ANY     NOT NULL,
    PRIMARY KEY (owner, name),
    CHECK (CASE kind
        WHEN 'boolean' THEN typeof(value) = 'integer' AND value IN (0, 1)
        WHEN 'null'    THEN typeof(value) = 'integer' AND value = 0
        WHEN 'number'  THEN typeof(value) IN ('integer', 'real')
        WHEN 'text'    THEN typeof(value) = 'text'
        ELSE 0 END)
) STRICT, WITHOUT ROWID;

CREATE INDEX relationship_properties_by_value ON relationship_properties (type, name, kind, value, owner);
