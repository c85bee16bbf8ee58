-- One row an operation, in the field order of lro.lifecycle.Record.
CREATE TABLE operations (
    seq INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    cancel_outcome TEXT,
    version INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    token INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    started_at INTEGER,
    claimed_at INTEGER,
    ended_at INTEGER,
    expire_at INTEGER,
    deleted_at INTEGER,
    lease_owner TEXT,
    lease_time INTEGER,
    cancel_requested_at INTEGER,
    cancel_reason TEXT,
    cancel_requester TEXT,
    committed_at INTEGER,
    progress TEXT,
    response TEXT,
    error TEXT,
    last_error TEXT,
    status_message TEXT,
    name TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL,
    job TEXT NOT NULL,
    owner TEXT NOT NULL,
    tenant TEXT NOT NULL,
    request_id TEXT,
    request_digest TEXT,
    target TEXT NOT NULL,
    priority INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    deadline_at INTEGER,
    grace INTEGER,
    retention INTEGER NOT NULL,
    restartable INTEGER NOT NULL,
    attempt_limit INTEGER NOT NULL,
    cancellable INTEGER NOT NULL,
    exclusive INTEGER NOT NULL,
    response_type TEXT NOT NULL,
    metadata_type TEXT NOT NULL,
    params TEXT,
    CONSTRAINT known_state
        CHECK (state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    CONSTRAINT done_has_one_result
        CHECK (
            CASE
                WHEN state IN ('PENDING', 'RUNNING') OR deleted_at IS NOT NULL
                    THEN response IS NULL AND error IS NULL
                WHEN state = 'SUCCEEDED' THEN response IS NOT NULL AND error IS NULL
                ELSE response IS NULL AND error IS NOT NULL
            END
        ),
    CONSTRAINT running_has_a_lease
        CHECK ((state = 'RUNNING') = (lease_owner IS NOT NULL)),
    CONSTRAINT cancelled_was_requested
        CHECK (state <> 'CANCELLED' OR cancel_requested_at IS NOT NULL),
    CONSTRAINT done_has_an_end
        CHECK ((state IN ('PENDING', 'RUNNING')) = (ended_at IS NULL)),
    CONSTRAINT counts_are_not_negative
        CHECK (version >= 1 AND attempt >= 0 AND token >= 0)
) STRICT;

-- The last four let a claim pass over what it may not take, by this index alone: what is on a full target, and what is
-- not due yet; though not by the clock, it may be due all the same.
CREATE INDEX operations_due ON operations (job, priority DESC, due_at, seq, target, created_at, started_at, updated_at)
WHERE state = 'PENDING';

-- For a claim that finds only full targets at the head of the queue.
CREATE INDEX operations_of_target ON operations (job, target, priority DESC, due_at, seq, created_at, started_at, updated_at)
WHERE state = 'PENDING' AND target <> '';

CREATE INDEX operations_waiting ON operations (tenant) WHERE state = 'PENDING';

CREATE INDEX operations_running ON operations (lease_owner, job, target) WHERE state = 'RUNNING';

CREATE INDEX operations_deadline ON operations (deadline_at)
WHERE state = 'PENDING' AND deadline_at IS NOT NULL;

CREATE INDEX operations_expiry ON operations (expire_at) WHERE expire_at IS NOT NULL;

CREATE INDEX operations_listed ON operations (parent, created_at DESC, name DESC)
WHERE deleted_at IS NULL;

CREATE INDEX operations_owned ON operations (parent, owner, created_at DESC, name DESC)
WHERE deleted_at IS NULL AND owner <> '';

CREATE INDEX operations_of_tenant ON operations (parent, tenant, created_at DESC, name DESC)
WHERE deleted_at IS NULL AND tenant <> '';

CREATE UNIQUE INDEX operations_exclusive ON operations (job, target, tenant, parent)
WHERE exclusive = 1 AND ended_at IS NULL;

CREATE UNIQUE INDEX operations_request ON operations (tenant, owner, job, request_id)
WHERE request_id IS NOT NULL;

-- Who runs operations: one row a worker, whose beat its renewals count up.
CREATE TABLE workers (
    id TEXT PRIMARY KEY,
    beat INTEGER NOT NULL,
    lease_time INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What all processes of one database share, such as the key of the page tokens.
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
