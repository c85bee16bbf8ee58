"""Every SQL statement of the SQLite store, but for those of a page, which `listing` composes.

They store and find. None decides about state: a test parses them all and refuses one that assigns a
literal or a CASE to a column that only a record of `lifecycle` may fill. The columns are the record's own
fields, in its order.
"""

from lro.lifecycle import Record

CHANGING = Record._fields[: Record._fields.index("name")]
COLUMNS = ", ".join(Record._fields)
MARKS = ", ".join("?" * len(Record._fields))

SELECT = f"SELECT {COLUMNS} FROM operations "
READ = SELECT + "WHERE name IN (SELECT value FROM json_each(?))"
READ_REQUESTED = (
    SELECT
    + """WHERE tenant = ?
AND owner = ?
AND job = ?
AND request_id = ?"""
)
FIND_RIVAL = (
    SELECT
    + """WHERE job = ?
AND target = ?
AND tenant = ?
AND parent = ?
AND exclusive = 1
AND ended_at IS NULL"""
)
COUNT_PENDING = """SELECT COUNT(*)
FROM (SELECT 1 FROM operations WHERE state = 'PENDING' AND tenant = ? LIMIT ?)"""
_IS_DUE = "(due_at <= :now OR due_at = created_at OR (started_at IS NOT NULL AND updated_at > :now))"
# As `lifecycle.is_due` has it: what it finds and may not be claimed costs a transaction that changes nothing.
FIND_DUE = f"""SELECT {COLUMNS}, seq FROM operations
WHERE state = 'PENDING'
AND job = :job
AND {_IS_DUE}
ORDER BY priority DESC, due_at, seq
LIMIT :room"""
# The same, past what is on a full target: it looks at the head of the queue, and no further.
FIND_DUE_BESIDE = f"""SELECT {COLUMNS}, seq FROM operations
WHERE seq IN (
    SELECT seq FROM (
        SELECT seq, target FROM operations
        WHERE state = 'PENDING'
        AND job = :job
        AND {_IS_DUE}
        ORDER BY priority DESC, due_at, seq
        LIMIT :head
    )
    WHERE target NOT IN (SELECT value FROM json_each(:full))
)
ORDER BY priority DESC, due_at, seq
LIMIT :room"""
# The first of each target that is not full, for when all of the head of the queue is: of so many targets at most.
FIND_DUE_BY_TARGET = f"""WITH RECURSIVE place (target) AS (
    SELECT min(target) FROM operations WHERE state = 'PENDING' AND job = :job AND target <> ''
    UNION ALL
    SELECT (SELECT min(target) FROM operations
        WHERE state = 'PENDING' AND job = :job AND target <> '' AND target > place.target)
    FROM place
    WHERE target IS NOT NULL
    LIMIT :head
)
SELECT {COLUMNS}, seq FROM operations
WHERE seq IN (
    SELECT (
        SELECT seq FROM operations
        WHERE state = 'PENDING'
        AND job = :job
        AND target <> ''
        AND target = place.target
        AND {_IS_DUE}
        ORDER BY priority DESC, due_at, seq
        LIMIT 1
    )
    FROM place
    WHERE target NOT IN (SELECT value FROM json_each(:full))
)
ORDER BY priority DESC, due_at, seq
LIMIT :room"""

COUNT_RUNNING = """SELECT job, target, COUNT(*)
FROM operations
WHERE state = 'RUNNING'
AND job IN (SELECT value FROM json_each(?))
GROUP BY job, target"""
FIND_ORPHANS = (
    SELECT
    + """WHERE state = 'RUNNING'
AND lease_owner IN (SELECT value FROM json_each(?))
LIMIT ?"""
)
FIND_LATE = (
    SELECT
    + """WHERE state = 'PENDING'
AND deadline_at IS NOT NULL
AND deadline_at <= ?
LIMIT ?"""
)
FIND_EXPIRED = (
    SELECT
    + """WHERE expire_at IS NOT NULL
AND expire_at <= ?
LIMIT ?"""
)
FIND_HELD = (
    SELECT
    + """WHERE state = 'RUNNING'
AND lease_owner = ?"""
)
INSERT = f"INSERT INTO operations ({COLUMNS}) VALUES ({MARKS})"
UPDATE = (
    "UPDATE operations SET " + ", ".join(f"{column} = ?" for column in CHANGING) + " WHERE name = ? AND version = ?"
)
DROP_PARAMS = "UPDATE operations SET params = NULL WHERE name = ?"
DELETE = "DELETE FROM operations WHERE name IN (SELECT value FROM json_each(?))"
OWNERS = "SELECT DISTINCT lease_owner FROM operations WHERE state = 'RUNNING'"
ANYTHING_DUE = """SELECT
    EXISTS (SELECT 1 FROM operations WHERE state = 'PENDING' AND deadline_at IS NOT NULL AND deadline_at <= :now)
    OR EXISTS (SELECT 1 FROM operations WHERE expire_at IS NOT NULL AND expire_at <= :now)"""
WORKERS = "SELECT id, beat, lease_time FROM workers"
BEATS = WORKERS + " WHERE id IN (SELECT value FROM json_each(?))"
# A row that comes back begins with no beat that it had before: to who remembers that, it would stand still.
BEAT = """INSERT INTO workers (id, beat, lease_time, started_at, host, pid)
VALUES (?, random() >> 8, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET beat = beat + 1"""
LEAVE = """DELETE FROM workers
WHERE id = ?
AND NOT EXISTS (SELECT 1 FROM operations WHERE state = 'RUNNING' AND lease_owner = workers.id)"""
SECRET = "SELECT value FROM settings WHERE name = 'secret'"
MAKE_SECRET = "INSERT OR IGNORE INTO settings (name, value) VALUES ('secret', lower(hex(randomblob(32))))"
MIGRATIONS = """CREATE TABLE IF NOT EXISTS schema_migrations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at INTEGER NOT NULL,
    compatible INTEGER NOT NULL
) STRICT"""
APPLIED = "SELECT number, checksum FROM schema_migrations"
NEEDED = "SELECT coalesce(max(number), 0) FROM schema_migrations WHERE compatible = 0"
NOTE_MIGRATION = "INSERT INTO schema_migrations (number, name, checksum, applied_at, compatible) VALUES (?, ?, ?, ?, ?)"
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"
