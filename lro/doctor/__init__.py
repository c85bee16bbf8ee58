"""The doctor: looks at a database from outside, beside whoever works on it, and says what is wrong and what to do.

Puts the looks together; `file` looks at what surrounds a database, `contents` at what is in it. It changes nothing:
it reads through SQLite alone, on a connection that can't write, and takes no lock that a writer waits for.
"""

from lro.doctor.contents import examine_contents
from lro.doctor.file import examine_file
from lro.doctor.finding import Examination, Finding, Severity
from lro.store import file_of

__all__ = ["Examination", "Finding", "Severity", "examine"]


def examine(url: str, *, thorough: bool = False) -> Examination:
    """Examine the database of a store.

    Args:
        url: As for `open_store`.
        thorough: Compare the indexes with their tables too, which takes longer.

    Raises:
        ValueError: As by `open_store`.
    """
    path = file_of(url)
    examination = Examination(str(path))
    if examine_file(path, examination):
        examine_contents(path, examination, thorough=thorough)
    return examination
