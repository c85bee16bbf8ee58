"""Every SQL statement of the PostgreSQL store, but for those of a page, which `walk` composes.

They store and find. None decides about state: a test parses them all and refuses one that assigns anything but a
bound value to a column that only a record of `lifecycle` may fill. The columns are the record's own fields, in its
order. Many rows are bound as one JSON text.
"""

from typing import Any, get_args

from lro.lifecycle import Record

FIXED = Record._fields.index("name")
CHANGING = Record._fields[:FIXED]
COLUMNS = ", ".join(Record._fields)


def _kind(annotation: Any) -> str:  # Any: a type, or a union of one and None
    (kind,) = {*(get_args(annotation) or (annotation,))} - {type(None)}
    return "BOOLEAN" if issubclass(kind, bool) else "BIGINT" if issubclass(kind, int) else "TEXT"


def _columns(columns: tuple[str, ...]) -> str:
    return ", ".join(f"{column} {_kind(Record.__annotations__[column])}" for column in columns)


BEGIN = "BEGIN"
BEGIN_SERIALIZABLE = "BEGIN ISOLATION LEVEL SERIALIZABLE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
WAIT_FOR_LOCKS = "SELECT set_config('lock_timeout', %s, TRUE)"

SELECT = f"SELECT {COLUMNS} FROM lro.operations "
READ = SELECT + "WHERE name = ANY(%s)"
LOCK = READ + " ORDER BY name FOR UPDATE"
READ_REQUESTED = (
    SELECT
    + """WHERE request_id IS NOT NULL
AND (tenant, owner, job, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[]))"""
)
FIND_RIVAL = (
    SELECT
    + """WHERE job = %s
AND target = %s
AND tenant = %s
AND parent = %s
AND exclusive
AND ended_at IS NULL"""
)
COUNT_PENDING = """SELECT COUNT(*)
FROM (SELECT 1 FROM lro.operations WHERE state = 'PENDING' AND tenant = %s LIMIT %s) AS counted"""
ALONE_IN_TENANT = "SELECT pg_advisory_xact_lock(hashtextextended('lro.tenant.' || %s, 0))"
ALONE_IN_JOBS = """SELECT pg_advisory_xact_lock(hashtextextended('lro.job.' || job, 0))
FROM (SELECT unnest(%s::text[]) AS job ORDER BY 1) AS wanted"""
COUNT_RUNNING = """SELECT job, target, COUNT(*)
FROM lro.operations
WHERE state = 'RUNNING'
AND job = ANY(%s)
GROUP BY job, target"""
_IS_DUE = "(due_at <= %(now)s OR due_at = created_at OR (started_at IS NOT NULL AND updated_at > %(now)s))"
_DUE = ", ".join(f"due.{column}" for column in Record._fields)
# As `lifecycle.is_due` has it: what it finds and may not be claimed costs a transaction that changes nothing. What is
# on a full target is passed over at the head of the queue, and no further. The braces are for how rows are locked.
FIND_DUE = f"""SELECT {_DUE}
FROM json_to_recordset(%(openings)s::json) AS opening(job TEXT, room BIGINT, full_targets JSON)
CROSS JOIN LATERAL (
    SELECT * FROM lro.operations
    WHERE state = 'PENDING'
    AND seq = ANY(ARRAY(
        SELECT head.seq FROM (
            SELECT seq, target FROM lro.operations
            WHERE state = 'PENDING'
            AND operations.job = opening.job
            AND {_IS_DUE}
            ORDER BY priority DESC, due_at, seq
            LIMIT greatest(opening.room, %(head)s)
        ) AS head
        WHERE NOT target = ANY(ARRAY(SELECT json_array_elements_text(opening.full_targets)))
    ))
    ORDER BY priority DESC, due_at, seq
    LIMIT opening.room
    {{}}
) AS due
ORDER BY due.priority DESC, due.due_at, due.seq"""
# The first of each target that is not full, for when all of the head of the queue is: of so many targets at most.
FIND_DUE_BY_TARGET = f"""WITH RECURSIVE place (target) AS (
    SELECT min(target) FROM lro.operations WHERE state = 'PENDING' AND job = %(job)s AND target <> ''
    UNION ALL
    SELECT (
        SELECT min(target) FROM lro.operations
        WHERE state = 'PENDING' AND job = %(job)s AND target <> '' AND target > place.target
    )
    FROM place
    WHERE target IS NOT NULL
),
places AS (SELECT target FROM place WHERE NOT target = ANY(%(full)s) LIMIT %(head)s)
SELECT {COLUMNS} FROM lro.operations
WHERE state = 'PENDING'
AND seq = ANY(ARRAY(
    SELECT first.seq FROM places
    CROSS JOIN LATERAL (
        SELECT seq FROM lro.operations
        WHERE state = 'PENDING'
        AND job = %(job)s
        AND target <> ''
        AND target = places.target
        AND {_IS_DUE}
        ORDER BY priority DESC, due_at, seq
        LIMIT 1
    ) AS first
))
ORDER BY priority DESC, due_at, seq
LIMIT %(room)s"""
FIND_ORPHANS = (
    SELECT
    + """WHERE state = 'RUNNING'
AND lease_owner = ANY(%s)
LIMIT %s"""
)
FIND_LATE = (
    SELECT
    + """WHERE state = 'PENDING'
AND deadline_at IS NOT NULL
AND deadline_at <= %s
LIMIT %s"""
)
FIND_EXPIRED = (
    SELECT
    + """WHERE expire_at IS NOT NULL
AND expire_at <= %s
LIMIT %s"""
)
FIND_HELD = (
    SELECT
    + """WHERE state = 'RUNNING'
AND lease_owner = %s"""
)
# In the order of what another process may be inserting too, so that two of them never wait for each other.
INSERT = f"""INSERT INTO lro.operations ({COLUMNS})
SELECT {COLUMNS} FROM json_to_recordset(%s::json) AS new({_columns(Record._fields)})
ORDER BY tenant, owner, job, request_id, target, parent, name
ON CONFLICT DO NOTHING"""
UPDATE = f"""UPDATE lro.operations AS old
SET {", ".join(f"{column} = new.{column}" for column in CHANGING)}
FROM json_to_recordset(%s::json) AS new({_columns(CHANGING)}, name TEXT, was BIGINT)
WHERE old.name = new.name
AND old.version = new.was"""
DROP_PARAMS = "UPDATE lro.operations SET params = NULL WHERE name = ANY(%s)"
DELETE = "DELETE FROM lro.operations WHERE name = ANY(%s)"
OWNERS = "SELECT DISTINCT lease_owner FROM lro.operations WHERE state = 'RUNNING'"
ANYTHING_DUE = """SELECT
    EXISTS (
        SELECT 1 FROM lro.operations WHERE state = 'PENDING' AND deadline_at IS NOT NULL AND deadline_at <= %(now)s
    )
    OR EXISTS (SELECT 1 FROM lro.operations WHERE expire_at IS NOT NULL AND expire_at <= %(now)s)"""
WORKERS = "SELECT id, beat, lease_time FROM lro.workers"
BEATS = WORKERS + " WHERE id = ANY(%s)"
LOCK_BEATS = BEATS + " ORDER BY id FOR UPDATE"
# A row that comes back begins with no beat that it had before: to who remembers that, it would stand still.
BEAT = """INSERT INTO lro.workers AS known (id, beat, lease_time, started_at, host, pid)
VALUES (%s, (random() * 1000000000000)::bigint, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET beat = known.beat + 1"""
LEAVE = """DELETE FROM lro.workers
WHERE id = %s
AND NOT EXISTS (SELECT 1 FROM lro.operations WHERE state = 'RUNNING' AND lease_owner = workers.id)"""
SECRET = "SELECT value FROM lro.settings WHERE name = 'secret'"
MAKE_SECRET = "INSERT INTO lro.settings (name, value) VALUES ('secret', %s) ON CONFLICT DO NOTHING"
SCHEMA = "CREATE SCHEMA IF NOT EXISTS lro"
MIGRATIONS = """CREATE TABLE IF NOT EXISTS lro.schema_migrations (
    number BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at BIGINT NOT NULL,
    compatible BOOLEAN NOT NULL
)"""
HAS_SCHEMA = "SELECT to_regclass('lro.schema_migrations') IS NOT NULL"
APPLIED = "SELECT number, checksum, compatible FROM lro.schema_migrations"
NOTE_MIGRATION = """INSERT INTO lro.schema_migrations (number, name, checksum, applied_at, compatible)
VALUES (%s, %s, %s, %s, %s)"""
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('lro.schema_migrations', 0))"
# One statement tells all that a transaction needs to know when it begins: the time in microseconds, the newest schema
# that is needed, and by what its outcome can be asked for.
LOOK = """SELECT
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    (SELECT coalesce(max(number), 0) FROM lro.schema_migrations WHERE NOT compatible)"""
LOOK_AND_NAME = LOOK + ", pg_current_xact_id()::text"
OUTCOME = "SELECT pg_xact_status(%s::xid8)"
NOTIFY = "SELECT pg_notify('lro', said) FROM unnest(%s::text[]) AS said"
LISTEN = "LISTEN lro"
SAVEPOINT = "SAVEPOINT lro_within"
ROLLBACK_TO = "ROLLBACK TO SAVEPOINT lro_within"
RELEASE = "RELEASE SAVEPOINT lro_within"
ALIVE = "SELECT 1"
