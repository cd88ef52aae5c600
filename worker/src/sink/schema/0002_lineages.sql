-- Two revisions of a pipeline side by side: a lineage is the state that revisions hand on to each other. What other tables
-- here call uid is the key of a lineage; the first one of a pipeline is called like its UID.

CREATE TABLE penstock.lineage (
    key      text        NOT NULL PRIMARY KEY,
    -- Of the pipeline.
    uid      text        NOT NULL,
    -- stable: it writes the tables that readers know. canary: it writes shadows of them, to be compared. previous: it was
    -- stable, and still writes the tables of before, which are the way back. retired: it is being removed.
    role     text        NOT NULL CHECK (role IN ('stable', 'canary', 'previous', 'retired')),
    begun_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (uid, role) DEFERRABLE INITIALLY IMMEDIATE
);

INSERT INTO penstock.lineage (key, uid, role) SELECT DISTINCT uid, uid, 'stable' FROM penstock.checkpoint;

-- Where a lineage has the tables of a schema that readers know. Without a row: a stable one there, others in the schema that
-- is named after them. It changes with checkpoint.layout only, which every transaction of a worker reads with its fence.
CREATE TABLE penstock.layout (
    key         text NOT NULL REFERENCES penstock.lineage ON UPDATE CASCADE ON DELETE CASCADE,
    live_schema text NOT NULL,
    schema      text NOT NULL,
    PRIMARY KEY (key, live_schema)
);

-- comparison: met by one lineage, whose key uid is. revisions, hold: met by all lineages of the pipeline whose UID uid is.
ALTER TABLE penstock.barrier
    DROP CONSTRAINT barrier_kind_check,
    ADD CONSTRAINT barrier_kind_check CHECK (kind IN ('comparison', 'revisions', 'hold')),
    -- Of a hold. Set once; promoted only in the transaction that exchanges the tables.
    ADD COLUMN outcome text CHECK (outcome IS NULL OR kind = 'hold' AND outcome IN ('promoted', 'aborted'));

DELETE FROM penstock.barrier;

ALTER TABLE penstock.barrier_arrival
    -- Of the lineage that came.
    ADD COLUMN key text NOT NULL,
    DROP CONSTRAINT barrier_arrival_pkey,
    ADD PRIMARY KEY (uid, nonce, key, shard);
