"""Literals: what is written on the right of an operator, read as what the field on its left holds.

Decides how texts, numbers, times and enum values are written, and which operators suit which kind of field.
"""

import re
from dataclasses import dataclass

from lro.clock import parse_time
from lro.errors import InvalidArgument, invalid
from lro.filter.expression import CHOICES, Comparison, Field, Free, Kind, Operator, Pattern
from lro.status import Code

__all__ = ["SHOWN", "Word", "compare", "refuse", "unquote"]

_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r"[^\\*]+")
SHOWN = 64  # characters of the filter's own that a message repeats

_ONLY_EQUALITY = {Kind.BOOLEAN, Kind.ENUM}


def refuse(position: int, what: str) -> InvalidArgument:
    """Return the error for a filter.

    Args:
        position: Where in it the fault is, from 1.
        what: What is wrong, and what would be right.
    """
    return invalid("filter", f"at {position}: {what}", reason="INVALID_FILTER", position=str(position))


def unquote(written: str, position: int) -> tuple[str, list[int]]:
    r"""Return a literal's text, and where in it are wildcards: `*` without a backslash in front.

    In quotes, `\"`, `\'`, `\\` and `\*` stand for the second of the two; without them a backslash is one.

    Raises:
        InvalidArgument: A backslash stands before something else.
    """
    if written[0] not in "\"'":
        return written, [at for at, character in enumerate(written) if character == "*"]
    pieces: list[str] = []
    wildcards: list[int] = []
    at, length = 1, 0
    while at < len(written) - 1:
        plain = _PLAIN.match(written, at, len(written) - 1)
        if plain is not None:
            piece = plain[0]
            at = plain.end()
        elif written[at] == "*":
            wildcards.append(length)
            piece = "*"
            at += 1
        else:
            piece = written[at + 1]
            if piece not in "\"'\\*":
                raise refuse(position + at, rf"a backslash stands before \, *, or a quote only, not before {piece!r}")
            at += 2
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), wildcards


@dataclass(frozen=True, slots=True)
class Word:
    """A literal as it is written.

    Attributes:
        written: With its quotes, if it has any.
        position: Where in the filter it begins, from 1.
    """

    written: str
    position: int

    @property
    def is_quoted(self) -> bool:
        """True if it stands in quotes."""
        return self.written[0] in "\"'"

    @property
    def text(self) -> str:
        """Its text, a wildcard as the `*` that it is."""
        return unquote(self.written, self.position)[0]

    @property
    def shown(self) -> str:
        """The text for a message."""
        text = self.text
        return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")

    def pattern(self) -> Pattern:
        """Return what a text must be like.

        Raises:
            InvalidArgument: A wildcard stands inside it.
        """
        text, wildcards = unquote(self.written, self.position)
        last = len(text) - 1
        if any(0 < at < last for at in wildcards):
            what = r'the wildcard * stands at the beginning or the end of a text; an asterisk itself is written "\*"'
            raise refuse(self.position, f"{self.shown}: {what}")
        before, after = 0 in wildcards, last > 0 and last in wildcards
        if text == "*" and before:
            return Pattern("", after=True, before=True)
        return Pattern(text[before : len(text) - after], after=after, before=before)

    def number(self) -> int | float | None:
        """Return it as a number, or None if it is none.

        Raises:
            InvalidArgument: It is too large.
        """
        text = self.text
        if _NUMBER.fullmatch(text) is None:
            return None
        if _INTEGER.fullmatch(text) and len(text) < 20 and -(2**63) <= int(text) < 2**63:
            return int(text)
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise refuse(self.position, f"the number {self.shown} is too large")
        return number


def compare(field: Field, operator: Operator, word: Word) -> Comparison:
    """Return the comparison of a field, which is no message, with a literal.

    Raises:
        InvalidArgument: The literal or the operator does not suit the field.
    """
    kind = field.kind
    if kind in (Kind.TEXTS, Kind.FREE):
        if kind is Kind.TEXTS and operator != ":":
            what = f"{field.path} is one of a list, which is searched with :, as in {field.path}:WORKER_LOST"
            raise refuse(word.position, what)
        pattern = _pattern(operator, word)
        return Comparison(field, operator, pattern if kind is Kind.TEXTS else _free(pattern, word))
    if operator == ":":
        operator = "="
    if kind in _ONLY_EQUALITY and operator not in ("=", "!="):
        raise refuse(word.position, f"{field.path} has no order: use = or !=, not {operator}")
    return Comparison(field, operator, _literal(field, operator, word))


def _literal(field: Field, operator: Operator, word: Word) -> bool | int | float | str | Pattern:
    match field.kind:
        case Kind.BOOLEAN:
            if word.text not in ("true", "false"):
                raise refuse(word.position, f"{field.path} is true or false, not {word.shown}")
            return word.text == "true"
        case Kind.ENUM:
            choices = [choice.value for choice in CHOICES[field.path]]
            if word.text not in choices:
                raise refuse(word.position, f"{field.path} is never {word.shown}, but one of {', '.join(choices)}")
            return word.text
        case Kind.TIME:
            try:
                return parse_time(word.text)
            except ValueError as error:
                what = f"{field.path} is compared with an RFC 3339 time such as 2026-11-22T20:15:00Z, not {word.shown}"
                raise refuse(word.position, what) from error
        case Kind.CODE:
            code = Code.__members__.get(word.text)
            if code is not None:
                return int(code)
            return _number(field, word, "the number or the name of a google.rpc.Code, such as 1 or CANCELLED")
        case Kind.NUMBER:
            return _number(field, word, "a number")
        case _:
            return _pattern(operator, word)


def _number(field: Field, word: Word, what: str) -> int | float:
    number = word.number()
    if number is None:
        raise refuse(word.position, f"{field.path} is compared with {what}, not {word.shown}")
    return number


def _pattern(operator: Operator, word: Word) -> Pattern:
    pattern = word.pattern()
    if (pattern.before or pattern.after) and operator not in ("=", "!=", ":"):
        what = rf'the wildcard * goes with = and != only, not with {operator}; an asterisk itself is written "\*"'
        raise refuse(word.position, f"{word.shown}: {what}")
    return pattern


def _free(pattern: Pattern, word: Word) -> Free:
    if word.is_quoted:
        return Free(pattern)
    return Free(pattern, word.number(), {"true": True, "false": False}.get(word.text))
