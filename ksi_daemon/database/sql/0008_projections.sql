-- How far projections are: of each the one that readers see, and one that is being built beside it.
CREATE TABLE projections (
    name       TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    role       TEXT    NOT NULL,            -- live, shadow, or retired: about to be deleted
    version    INTEGER NOT NULL,            -- of the code that built it
    columns    TEXT,                        -- of its table projection_NAME_GENERATION; NULL: it has documents
    position   INTEGER NOT NULL DEFAULT 0,  -- everything up to this seq is applied
    missing    INTEGER NOT NULL DEFAULT 0,  -- positions that could not be had: damaged, or deleted by retention
    PRIMARY KEY (name, generation)
) WITHOUT ROWID;

CREATE UNIQUE INDEX projections_role ON projections (name, role) WHERE role != 'retired';

CREATE TABLE projection_documents (
    name       TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    key        TEXT    NOT NULL,  -- '' where there is one document
    state      TEXT    NOT NULL,  -- JSON
    PRIMARY KEY (name, generation, key)
) WITHOUT ROWID;

-- What streams came to at a version, so that they need not be folded from their beginning.
CREATE TABLE snapshots (
    aggregate TEXT    NOT NULL,  -- the function that folds
    stream    TEXT    NOT NULL,
    code      INTEGER NOT NULL,  -- its version
    version   INTEGER NOT NULL,  -- of the stream
    state     TEXT    NOT NULL,  -- JSON
    PRIMARY KEY (aggregate, stream)
) WITHOUT ROWID;
