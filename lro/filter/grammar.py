"""How a filter is written: AIP-160's grammar, without functions and bare literals.

Decides the syntax and what binds tighter, stops reading at the limits, and says what was expected where. OR binds
tighter than AND, and what stands side by side is as with AND between.
"""

import re
from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

from lark import Lark, Token, Transformer, v_args  # pyright: ignore[reportUnknownVariableType]  # untyped in part
from lark.exceptions import UnexpectedInput

from lro.errors import InvalidArgument
from lro.filter.expression import KINDS, And, Field, Filter, Kind, Not, Operator, Or, Presence
from lro.filter.literal import SHOWN, Word, compare, refuse, unquote

__all__ = ["read"]

_LETTER = r"""[^\s()"',=<>!]"""  # of a value without quotes
_PART = r"""[^\s()"',=<>!.:]"""  # of a field's key without quotes
_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_NAME = rf"(?:(?!(?:AND|OR|NOT)(?!{_PART}))(?!-){_PART}+)"

_GRAMMAR = rf"""
?start: expression
?expression: factor | factor (_AND? factor)+ -> conjunction
?factor: term | term (_OR term)+ -> disjunction
?term: simple | (_NOT | _MINUS) simple -> negation
?simple: MEMBER COMPARATOR value -> restriction
       | MEMBER COMPARATOR _OPEN values _CLOSE -> group
       | MEMBER -> bare
       | FUNCTION
       | _OPEN expression _CLOSE

?values: options | options (_AND? options)+ -> all_of
?options: choice | choice (_OR choice)+ -> any_of
?choice: item | (_NOT | _MINUS) item -> none_of
?item: (WORD | STRING) -> word
     | FUNCTION
     | _OPEN values _CLOSE
?value: (WORD | STRING) -> word
      | FUNCTION

COMPARATOR: "<=" | ">=" | "!=" | "<" | ">" | "=" | ":"
_MINUS: "-"
_OPEN: "("
_CLOSE: ")"
_AND.2: /AND(?!{_PART})/
_OR.2: /OR(?!{_PART})/
_NOT.2: /NOT(?!{_PART})/
STRING: /{_STRING}/s
WORD: /(?!(?:AND|OR|NOT)(?!{_LETTER}))(?!-(?![0-9])){_LETTER}+/
MEMBER: /(?:{_NAME}|{_STRING})(?:\.(?:{_PART}+|{_STRING}))*/s
FUNCTION.3: /(?!(?:AND|OR|NOT)\(){_NAME}(?:\.{_PART}+)*\(/
%ignore /\s+/
"""
# The words after an operator and those in parentheses are rules apart: so the lexer knows whether a field may follow.

_KEY = re.compile(rf"({_STRING}|{_PART}+)(?:\.|$)", re.DOTALL)

_EXPECTED = {
    "MEMBER": "a field",
    "COMPARATOR": "an operator",
    "WORD": "a value",
    "_AND": "AND",
    "_OR": "OR",
    "_OPEN": "(",
    "_CLOSE": ")",
    "$END": "the end",
}
"""How messages call those terminals that are worth a word, in this order."""

_FIELDS = {
    tuple(spelling.split(".")): path
    for path in KINDS
    for spelling in (re.sub("([A-Z])", lambda found: f"_{found[0].lower()}", path), path)
}
"""Every field's path by its keys, in snake_case and in lowerCamel."""


def read(text: str, max_terms: int, max_depth: int) -> Filter:
    """Read a filter that is not blank; see `lro.filter.parse`."""
    parser = _grammar().parse_interactive(text)
    depth = terms = 0
    try:
        for token in parser.iter_parse():
            depth += (token.type == "_OPEN") - (token.type == "_CLOSE")
            terms += token.type in ("WORD", "STRING")
            if depth > max_depth:
                raise refuse(_position(token), f"parentheses stand {max_depth} deep at most")
            if terms > max_terms:
                raise refuse(_position(token), f"a filter has {max_terms} values at most")
            if token.type == "MEMBER" and len(_KEY.findall(token)) > max_depth:
                raise refuse(_position(token), f"a field is {max_depth} keys deep at most")
            if token.type == "FUNCTION":
                raise refuse(_position(token), f"{_shown(token[:-1])} is called as a function, and there are none")
        found: Filter = parser.feed_eof()
    except UnexpectedInput as error:
        raise _misread(text, error, f"expected {_listed(parser.accepts())}") from error
    return found


def _misread(text: str, error: UnexpectedInput, expected: str) -> InvalidArgument:
    token: Token | None = getattr(error, "token", None)  # None: what stands there is no token at all
    at: int = getattr(error, "pos_in_stream", 0)
    if token is None and text[at] in "\"'":
        return refuse(at + 1, f"this {text[at]} begins nothing that ends, or stands inside a word")
    if token is not None and token.type == "$END":
        return refuse(len(text) + 1, f"the filter ends here, {expected}")
    return refuse(at + 1, f"found {_shown(token or text[at])}, {expected}")


@cache
def _grammar() -> Any:  # Any: a Lark, whose interactive parser is untyped in part
    return Lark(_GRAMMAR, parser="lalr", transformer=_Builder())


_Compare = Callable[[Word], Filter]
_Value = Callable[[_Compare], Filter]
"""What stands on the right of an operator: given how one word is compared, it makes the expression of all."""


@v_args(inline=True)
class _Builder(Transformer[Token, Filter]):
    """Makes an expression of what was read: lark calls the method of each rule, innermost first."""

    def conjunction(self, *operands: Filter) -> Filter:
        return And(operands)

    def disjunction(self, *operands: Filter) -> Filter:
        return Or(operands)

    def negation(self, operand: Filter) -> Filter:
        return Not(operand)

    def restriction(self, member: Token, comparator: Token, value: _Value) -> Filter:
        return value(partial(_restrict, _field(member), comparator))

    def group(self, member: Token, comparator: Token, values: _Value) -> Filter:
        if comparator not in ("=", ":"):
            what = f"several values in parentheses go with = and :, not with {comparator}; put NOT before the field"
            raise refuse(_position(comparator), what)
        return self.restriction(member, comparator, values)

    def all_of(self, *values: _Value) -> _Value:
        return lambda compare: And(tuple(value(compare) for value in values))

    def any_of(self, *values: _Value) -> _Value:
        return lambda compare: Or(tuple(value(compare) for value in values))

    def none_of(self, value: _Value) -> _Value:
        return lambda compare: Not(value(compare))

    def word(self, token: Token) -> _Value:
        return lambda compare: compare(Word(str(token), _position(token)))

    def bare(self, member: Token) -> Filter:
        what = "write a field, an operator and a value, such as done = true"
        if member.lower() in ("and", "or", "not"):
            what = "AND, OR and NOT are written in capitals"
        raise refuse(_position(member), f"{_shown(member)} stands alone: {what}")


def _field(member: Token) -> Field:
    """Return the field that is named so."""
    keys = tuple(unquote(key, _position(member))[0] for key in _KEY.findall(member))
    return _found(keys, _position(member))


def _found(keys: tuple[str, ...], position: int) -> Field:
    if keys[:2] == ("metadata", "progress"):
        return Field("metadata.progress", keys[2:])
    path = _FIELDS.get(keys)
    if path is not None:
        return Field(path)
    for known in range(len(keys) - 1, 0, -1):
        path = _FIELDS.get(keys[:known])
        if path is not None and KINDS[path] is not Kind.MESSAGE:
            raise refuse(position, f"{path} has no fields")
    name = ".".join(keys)[:SHOWN]
    if ("metadata", *keys) in _FIELDS:
        hint = f"write metadata.{name}"
    elif near := get_close_matches(name, KINDS, 1):
        hint = f"did you mean {near[0]}?"
    else:
        hint = "there are name, done, error, response and metadata, and the fields of these"
    raise refuse(position, f"no operation has a field {name!r}: {hint}")


def _restrict(field: Field, comparator: Token, word: Word) -> Filter:
    """Return the restriction of a field by one word."""
    operator: Operator = comparator.value
    is_star = word.written == "*"
    if field.kind is Kind.MESSAGE or (field.kind is Kind.FREE and not field.keys):
        if operator != ":":
            what = f"{field.path} has fields: compare one of them, or ask with {field.path}:* whether it is there"
            raise refuse(_position(comparator), what)
        if not is_star:
            return Presence(_found((*field.path.split("."), word.text), word.position))
    return Presence(field) if operator == ":" and is_star else compare(field, operator, word)


def _position(token: Token) -> int:
    return (token.start_pos or 0) + 1


def _shown(token: str) -> str:
    return repr(str(token) if len(token) <= SHOWN else f"{token[:SHOWN]}...")


def _listed(terminals: Collection[str]) -> str:
    return " or ".join(word for terminal, word in _EXPECTED.items() if terminal in terminals)
