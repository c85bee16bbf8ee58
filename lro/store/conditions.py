"""Filters as conditions on a row of `operations`, in the SQL of any database.

Decides what a filter asks of a row; how a field is had from the columns, and how JSON is taken apart, is a store's own
affair: the methods at the end of the class. What `lro.resource` shows and this finds are the same, which a test holds
against each other. What the caller wrote is bound, never part of the text. A condition may come out NULL, which counts
as false.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from lro.clock import LAST_TIME
from lro.filter import And, Comparison, Field, Filter, Free, Kind, Not, Operator, Or, Pattern, Presence

__all__ = ["EVER", "Condition", "created_between"]

EVER = (-(2**63), 2**63 - 2)
"""From the earliest time that a column holds to the latest that has a next one."""

_DETAILS = ("details", "reason")  # the way from a Status to the texts of TEXTS


class Condition(ABC):
    """A filter as a condition of SQL.

    A *node* is the alias of a source of rows that holds one value of a JSON text in each.

    Attributes:
        VALUES: Every field's value: a truth for a BOOLEAN, microseconds for a TIME, JSON text for MESSAGE, TEXTS
            and FREE.
        text: Refers to the columns of `operations` by their bare names, and to its parameters by theirs.
        parameters: The values to bind.
    """

    VALUES: ClassVar[dict[str, str]]

    def __init__(self, filter: Filter) -> None:  # noqa: A002 -- its name everywhere
        self.parameters: dict[str, object] = {}
        self.text = self._condition(filter)

    def _bind(self, value: object) -> str:
        name = f"filter_{len(self.parameters)}"
        self.parameters[name] = value
        return self._mark(name, value)

    def _condition(self, filter: Filter) -> str:  # noqa: A002 -- as above
        match filter:
            case And(operands):
                return f"({' AND '.join([self._condition(operand) for operand in operands])})" if operands else "TRUE"
            case Or(operands):
                return f"({' OR '.join([self._condition(operand) for operand in operands])})"
            case Not(operand):
                return f"(({self._condition(operand)}) IS NOT TRUE)"
            case Presence(field):
                return self._presence(field)
            case Comparison(field, operator, Free() as literal):
                test = partial(self._compares, operator, literal)
                return self._exists(self.VALUES[field.path], field.keys, test, through_lists=operator == ":")
            case Comparison(field, _, Pattern() as literal) if field.kind is Kind.TEXTS:
                test = partial(self._is_text_like, literal)
                return self._exists(self.VALUES[field.path], _DETAILS, test, through_lists=True)
            case Comparison(field, "=", Pattern() as literal):
                return self._matches(self.VALUES[field.path], literal)
            case Comparison(field, "!=", Pattern() as literal):
                text = self.VALUES[field.path]
                return f"({text} IS NOT NULL AND NOT ({self._matches(text, literal)}))"
            case Comparison(field, operator, literal):
                value = literal.text if isinstance(literal, Pattern) else literal
                return f"({self._value(field)}) {operator} {self._bind(value)}"

    def _value(self, field: Field) -> str:
        """Return a field's value as the wire shows it: a time at the end of the year 9999 at the latest."""
        value = self.VALUES[field.path]
        return (
            f"CASE WHEN {value} > {LAST_TIME} THEN {LAST_TIME} ELSE {value} END" if field.kind is Kind.TIME else value
        )

    def _presence(self, field: Field) -> str:
        value = self.VALUES[field.path]
        match field.kind:
            case Kind.BOOLEAN:
                return f"({value})"
            case Kind.NUMBER | Kind.CODE:
                return f"{value} <> 0"
            case Kind.TEXT | Kind.ENUM:
                return f"{value} <> ''"
            case Kind.TEXTS:
                return self._exists(value, _DETAILS, self._is_text, through_lists=True)
            case Kind.FREE if field.keys:
                return self._exists(value, field.keys, self._is_something, through_lists=True)
            case _:
                return f"({value}) IS NOT NULL"

    def _matches(self, value: str, pattern: Pattern) -> str:
        if not pattern.text and (pattern.before or pattern.after):
            return f"{value} IS NOT NULL"
        text = self._bind(pattern.text)
        if pattern.before and pattern.after:
            return self._contains(value, text)
        if pattern.after:
            return f"substr({value}, 1, length({text})) = {text}"
        return self._ends(value, text) if pattern.before else f"{value} = {text}"

    def _is_text_like(self, pattern: Pattern, node: str) -> str:
        return f"{self._is_text(node)} AND {self._matches(self._text(node), pattern)}"

    def _compares(self, operator: Operator, literal: Free, node: str) -> str:
        match operator:
            case "=":
                return self._equals(literal, node)
            case "!=":
                return f"{self._is_scalar(node)} AND NOT {self._equals(literal, node)}"
            case ":":
                element = f"SELECT 1 FROM {self._elements(node, 'element')} WHERE {self._equals(literal, 'element')}"
                has_key = f"{self._is_something('member')} AND {self._matches('member.key', literal.pattern)}"
                member = f"SELECT 1 FROM {self._members(node, 'member')} WHERE {has_key}"
                return f"({self._equals(literal, node)} OR EXISTS ({element}) OR EXISTS ({member}))"
            case _:
                text = f"{self._text(node)} {operator} {self._bind(literal.pattern.text)}"
                number = None
                if literal.number is not None:
                    number = f"{self._number(node)} {operator} {self._bind(literal.number)}"
                return self._by_type(node, text, number)

    def _equals(self, literal: Free, node: str) -> str:
        text = self._matches(self._text(node), literal.pattern)
        number = None if literal.number is None else f"{self._number(node)} = {self._bind(literal.number)}"
        return self._by_type(node, text, number, literal.truth)

    def _exists(self, root: str, keys: Sequence[str], test: Callable[[str], str], *, through_lists: bool) -> str:
        """Return whether there is a value at the end of these keys that passes a test.

        Args:
            root: The JSON text.
            keys: The way from there, at least one.
            test: Makes the condition on the node that holds the value.
            through_lists: True if a list on the way stands for each of its elements.
        """
        sources = [self._root(root, "key_0")]
        conditions: list[str] = []
        above = ""
        for number, key in enumerate(keys):
            node = f"key_{number}"
            if above and through_lists:
                element = f"element_{number}"
                sources.append(self._elements_or_itself(above, element))
                above = element
            if above:
                sources.append(self._members(above, node))
            conditions.append(f"{node}.key = {self._bind(key)}")
            above = node
        conditions.append(test(above))
        return f"EXISTS (SELECT 1 FROM {' CROSS JOIN '.join(sources)} WHERE {' AND '.join(conditions)})"

    # What a database gives

    @abstractmethod
    def _mark(self, name: str, value: object) -> str:
        """Return the place of a parameter."""

    @abstractmethod
    def _contains(self, value: str, text: str) -> str:
        """Return whether a text has another in it."""

    @abstractmethod
    def _ends(self, value: str, text: str) -> str:
        """Return whether a text ends with another."""

    @abstractmethod
    def _root(self, json: str, node: str) -> str:
        """Return the source of the members of a JSON text."""

    @abstractmethod
    def _members(self, above: str, node: str) -> str:
        """Return the source of the members of a node that is an object; of any other there are none."""

    @abstractmethod
    def _elements(self, above: str, node: str) -> str:
        """Return the source of the elements of a node that is a list; of any other there are none."""

    @abstractmethod
    def _elements_or_itself(self, above: str, node: str) -> str:
        """Return the source of the elements of a list, or the one object."""

    @abstractmethod
    def _text(self, node: str) -> str:
        """Return a node's value, if it is a text."""

    @abstractmethod
    def _number(self, node: str) -> str:
        """Return a node's value, if it is a number."""

    @abstractmethod
    def _is_text(self, node: str) -> str:
        """Return whether a node is a text."""

    @abstractmethod
    def _is_scalar(self, node: str) -> str:
        """Return whether a node is a text, a number or a truth."""

    @abstractmethod
    def _is_something(self, node: str) -> str:
        """Return whether a node is not null."""

    @abstractmethod
    def _by_type(self, node: str, text: str, number: str | None, truth: bool | None = None) -> str:
        """Return the test that is for a node's type: for a truth, whether it is this one; None for no such test."""


def created_between(filter: Filter) -> tuple[int, int]:  # noqa: A002 -- as above
    """Return the earliest and the latest time of creation that a filter lets pass, as far as is plain to see."""
    earliest, latest = EVER
    match filter:
        case And(operands):
            for operand in operands:
                low, high = created_between(operand)
                earliest, latest = max(earliest, low), min(latest, high)
        case Comparison(Field("metadata.createTime"), operator, int(time)) if time < LAST_TIME:
            if operator in ("=", ">=", ">"):
                earliest = time + (operator == ">")
            if operator in ("=", "<=", "<"):
                latest = time - (operator == "<")
        case _:
            pass
    return earliest, latest
