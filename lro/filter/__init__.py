"""Filters in the language of AIP-160: `done = true AND (metadata.verb = "books.*" OR error:*)`.

`parse` makes a checked expression of a text, and refuses what is too long for one. How it is written is
`grammar`'s affair, what stands on the right of an operator `literal`'s; what fields there are, `expression` says.
"""

from lro.filter.expression import (
    CHOICES,
    EVERYTHING,
    KINDS,
    And,
    Comparison,
    Field,
    Filter,
    Free,
    Kind,
    Not,
    Operator,
    Or,
    Pattern,
    Presence,
)
from lro.filter.literal import refuse

__all__ = [
    "CHOICES",
    "EVERYTHING",
    "KINDS",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_TERMS",
    "And",
    "Comparison",
    "Field",
    "Filter",
    "Free",
    "Kind",
    "Not",
    "Operator",
    "Or",
    "Pattern",
    "Presence",
    "parse",
]

MAX_BYTES = 2048  # of UTF-8
MAX_TERMS = 50  # literals
MAX_DEPTH = 20  # parentheses inside each other, and keys of one field; SQLite bears 32


def parse(text: str, *, max_bytes: int = MAX_BYTES, max_terms: int = MAX_TERMS, max_depth: int = MAX_DEPTH) -> Filter:
    """Read a filter (AIP-160); EVERYTHING if it is blank.

    Args:
        text: The filter.
        max_bytes: Its length at most, in UTF-8.
        max_terms: Literals at most.
        max_depth: Parentheses inside each other, and keys of one field, at most.

    Raises:
        InvalidArgument: It is none, or names a field that no operation has, or compares one with what it can't
            be; reason INVALID_FILTER, the position in the message and in the ErrorInfo.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise refuse(error.start + 1, "half of a surrogate pair stands here") from error
    if size > max_bytes:
        raise refuse(1, f"the filter has {size:,} bytes; {max_bytes:,} are allowed")
    if "\0" in text:
        raise refuse(text.index("\0") + 1, "the character U+0000 is in no field")
    if not text or text.isspace():
        return EVERYTHING

    from lro.filter.grammar import read  # noqa: PLC0415 -- only who filters pays for lark

    return read(text, max_terms, max_depth)
