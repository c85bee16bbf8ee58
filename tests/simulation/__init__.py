"""Deterministic simulation: a few processes, eight clients and a seed that decides all the rest.

What runs is what ships: the SQLite store with its queue and batches, the worker, attempts, operations, every rule of
`lifecycle`. Replaced are a store's place (one SQLite in memory that all processes share), the clock (virtual time),
the event loop's choice of what runs next, and the network between clients and processes. All of it draws from one
seed: latencies, lost requests and answers, commits that fail or succeed and say that they failed, "database is
locked", processes that are frozen for longer than their leases, killed in the middle of a transaction, shut down and
started again, a wall clock that jumps by seconds or hours. After each commit, each start of a job and each answer to a
client `checks` says what must hold; once the trouble ends, all must come to its end.

    python -m tests.simulation --seeds 1000                    many stories
    python -m tests.simulation --first 17 --seeds 1 --say      one, told event by event
    python -m tests.simulation --mutant NAME --until-caught    the library broken in one place: it must be caught

A seed that fails is printed with the command that tells it again, and kept in `corpus.txt`.

Not simulated: jobs in threads, HTTP, files and their locks as the kernel has them, power loss; other tests have those.
"""
