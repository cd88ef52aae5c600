-- What the workers of all pipelines that write into this database keep here. One row per pipeline and shard is
-- the fence and the position; it moves in the same transaction as the rows it speaks of.

CREATE TABLE penstock.checkpoint (
    uid              text        NOT NULL,
    shard            integer     NOT NULL,
    -- How many shards the pipeline has: the assignment of tables is worth nothing with another number.
    shards           integer     NOT NULL,
    namespace        text        NOT NULL,
    name             text        NOT NULL,
    revision         text        NOT NULL,
    -- A run may take the row from a revision with a lower or the same number only. NULL: a run outside a cluster.
    revision_number  bigint,
    -- UID that slot and publication are named after; another one than uid after an adoption.
    names_uid        text        NOT NULL,
    epoch            bigint      NOT NULL,
    -- Random, new with every epoch: a sink restored to an older state gives the same epoch a second time.
    run_id           uuid        NOT NULL DEFAULT gen_random_uuid(),
    sequence         bigint      NOT NULL DEFAULT 0,
    -- Position; NULL until the first load began.
    commit_lsn       pg_lsn,
    xid              bigint,
    ordinal          bigint,
    end_lsn          pg_lsn,
    -- What the position is an address in.
    source_system_id text        NOT NULL,
    source_timeline  bigint      NOT NULL,
    slot             text        NOT NULL,
    -- The last mark of ours that was read of that log: one that lacks it there has another history.
    heartbeat_lsn    pg_lsn,
    heartbeat_xid    bigint,
    heartbeat_token  uuid,
    -- The server that this row was written on.
    sink_system_id   text        NOT NULL,
    sink_timeline    bigint      NOT NULL,
    -- Which physical table each role of a pipeline means; read with the fence.
    layout           bigint      NOT NULL DEFAULT 1,
    volume_id        uuid        NOT NULL,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (uid, shard)
) WITH (fillfactor = 20);

COMMENT ON TABLE penstock.checkpoint IS
    'Where each shard of each pipeline stands. The fence of exactly-once delivery: never edit it by hand.';

CREATE TABLE penstock.table_state (
    uid           text        NOT NULL,
    source_schema text        NOT NULL,
    source_table  text        NOT NULL,
    sink_schema   text        NOT NULL,
    sink_table    text        NOT NULL,
    -- Names are given anew; a table of another OID is another table, and is copied from its beginning.
    source_oid    bigint      NOT NULL,
    sink_oid      bigint      NOT NULL,
    -- stale: the stream left changes of it out, so the rows that are there are worth nothing.
    -- incremental: rows up to copied_to, a key in the order of copied_by, are there and followed.
    -- copying, with copied_by: the first load goes in ranges of that key, see copied_chunk.
    state         text        NOT NULL CHECK (state IN ('copying', 'incremental', 'ready', 'stale')),
    copied_by     text[],
    copied_to     text[],
    -- Changes committed at the source before it are in the copy.
    ready_lsn     pg_lsn      CHECK ((state = 'ready') = (ready_lsn IS NOT NULL)),
    chunks_copied bigint      NOT NULL DEFAULT 0,
    rows_copied   bigint      NOT NULL DEFAULT 0,
    -- The source's columns as the sink's rows have them, with what tells whether the source rewrote its rows since.
    shape         text,
    -- Columns of it that the sink does not have: rows were written without them.
    left_out      text[]      NOT NULL DEFAULT '{}',
    -- What was done to the rows on their way (transforms), as JSON; empty: nothing.
    steps         text        NOT NULL DEFAULT '',
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (uid, source_schema, source_table)
);

-- Ranges of a key that a first load has copied. Those whose numbers follow each other from 0 on are worth keeping when
-- it is cut short: their rows are as they were where the stream begins.
CREATE TABLE penstock.copied_chunk (
    uid           text   NOT NULL,
    source_schema text   NOT NULL,
    source_table  text   NOT NULL,
    number        bigint NOT NULL,
    -- The last key of the range, in the order of table_state.copied_by.
    up_to         text[] NOT NULL,
    PRIMARY KEY (uid, source_schema, source_table, number),
    FOREIGN KEY (uid, source_schema, source_table) REFERENCES penstock.table_state
        ON UPDATE CASCADE ON DELETE CASCADE
);

CREATE TABLE penstock.assignment (
    uid           text    NOT NULL,
    source_schema text    NOT NULL,
    source_table  text    NOT NULL,
    shard         integer NOT NULL,
    -- By which entry the publication carries the table: another one after it was taken out and put back.
    published_as  bigint,
    PRIMARY KEY (uid, source_schema, source_table)
);

CREATE TABLE penstock.ownership (
    sink_schema   text        NOT NULL,
    sink_table    text        NOT NULL,
    uid           text        NOT NULL,
    namespace     text        NOT NULL,
    name          text        NOT NULL,
    source_schema text        NOT NULL,
    source_table  text        NOT NULL,
    -- The pipeline no longer writes the table: another one may claim it.
    is_released   boolean     NOT NULL DEFAULT false,
    claimed_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink_schema, sink_table)
);

-- Pipelines whose state another one took over. A worker of theirs that still runs must not begin anew.
CREATE TABLE penstock.adoption (
    uid        text        NOT NULL PRIMARY KEY,
    adopted_by text        NOT NULL,
    adopted_at timestamptz NOT NULL DEFAULT now()
);

-- Barriers: messages in the source's log that every shard meets between the same two commits. Whoever wants one writes
-- it here first, because any role may write messages into the log: one that is not here is not met.
CREATE TABLE penstock.barrier (
    uid           text        NOT NULL,
    -- Random; what the message says.
    nonce         uuid        NOT NULL,
    kind          text        NOT NULL CHECK (kind IN ('comparison')),
    registered_at timestamptz NOT NULL DEFAULT now(),
    -- Whoever registered it moves this on while it waits; past it nobody waits, and shards let their snapshots go.
    expires_at    timestamptz NOT NULL,
    PRIMARY KEY (uid, nonce)
);

CREATE TABLE penstock.barrier_arrival (
    uid        text    NOT NULL,
    nonce      uuid    NOT NULL,
    shard      integer NOT NULL,
    -- opening: written in the transaction that settles everything before the barrier. held: the shard's sink as it is at
    -- the barrier is open as this snapshot. void: it could not be opened.
    state      text    NOT NULL CHECK (state IN ('opening', 'held', 'void')),
    snapshot   text    CHECK ((state = 'held') = (snapshot IS NOT NULL)),
    reason     text,
    -- Of the run that came to the barrier: a later one never does.
    epoch      bigint  NOT NULL,
    sequence   bigint  CHECK ((state = 'opening') = (sequence IS NULL)),
    commit_lsn pg_lsn  CHECK ((state = 'opening') = (commit_lsn IS NULL)),
    PRIMARY KEY (uid, nonce, shard),
    FOREIGN KEY (uid, nonce) REFERENCES penstock.barrier ON DELETE CASCADE
);

-- Shards that cannot go on by themselves, and what a person decided about it. A row counts as long as the shard stands
-- where it stood, before the same source: what was decided about one dead end is not done to another.
CREATE TABLE penstock.dead_end (
    uid              text        NOT NULL,
    shard            integer     NOT NULL,
    reason           text        NOT NULL,
    message          text        NOT NULL,
    end_lsn          pg_lsn,
    source_system_id text        NOT NULL,
    source_timeline  bigint      NOT NULL,
    -- Where the source's log ended: a slot that stands further on is not the one that was found here.
    source_end       pg_lsn,
    noted_at         timestamptz NOT NULL DEFAULT now(),
    decision         text        CHECK (decision IN ('begin-anew', 'accept-loss')),
    why              text        CHECK ((decision IS NULL) = (why IS NULL)),
    decided_by       text,
    decided_at       timestamptz,
    PRIMARY KEY (uid, shard)
);

-- What was decided and carried out, for good.
CREATE TABLE penstock.accepted_loss (
    uid            text        NOT NULL,
    shard          integer     NOT NULL,
    namespace      text        NOT NULL,
    name           text        NOT NULL,
    reason         text        NOT NULL,
    message        text        NOT NULL,
    decision       text        NOT NULL,
    why            text        NOT NULL,
    decided_by     text        NOT NULL,
    decided_at     timestamptz NOT NULL,
    carried_out_at timestamptz NOT NULL DEFAULT now(),
    -- accept-loss: changes committed from here to there may be missing. begin-anew: where it stood, and stands.
    from_lsn       pg_lsn,
    to_lsn         pg_lsn      NOT NULL
);

COMMENT ON TABLE penstock.accepted_loss IS
    'Where a person let a pipeline go on that could not go on by itself: why, who, when, and which changes may be missing.';

-- Tokens of penstock.dev/resnapshot that were carried out.
CREATE TABLE penstock.resnapshot (
    uid      text        NOT NULL,
    token    text        NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (uid, token)
);
