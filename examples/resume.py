"""Resume after a crash: kill the server with -9, start it again, and the import goes on where it was.

    lro serve examples.resume:service
    curl -X POST localhost:8000/v1/jobs/books.import:run \
        -H 'content-type: application/json' -d '{"params": {"path": "books.csv"}}'
"""

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel

from lro import AllowAnonymous, RetryPolicy, Service, SyncContext, job

BATCH = 100  # lines, a book each


class File(BaseModel):
    path: str


class Progress(BaseModel):
    position: int = 0  # in the file: where the next attempt goes on
    books: int = 0


@job("books.import", retry=RetryPolicy(attempts=5))
def import_books(ctx: SyncContext[Progress], params: File) -> dict[str, int]:
    with closing(sqlite3.connect("books.db")) as database, Path(params.path).open("rb") as file:
        database.execute("CREATE TABLE IF NOT EXISTS books (isbn TEXT PRIMARY KEY, title TEXT)")
        file.seek(ctx.progress.position)
        while lines := [line for _ in range(BATCH) if (line := file.readline())]:
            rows = csv.reader(line.decode() for line in lines)
            with database:  # what a crash repeats is written over: the same rows under the same keys
                database.executemany("INSERT OR REPLACE INTO books VALUES (?, ?)", rows)
            ctx.checkpoint(Progress(position=file.tell(), books=ctx.progress.books + len(lines)))
    return {"books": ctx.progress.books}


service = Service("sqlite:///lro.db", jobs=[import_books], auth=AllowAnonymous())
