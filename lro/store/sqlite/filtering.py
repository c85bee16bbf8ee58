"""Filters as SQL: a condition on a row of `operations`, made of the fragments below.

Decides how a field of the resource is had from the columns; what `lro.resource` shows and this finds are the same,
which a test holds against each other. What the caller wrote is bound, never part of the text. A condition may
come out NULL, which counts as false.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from lro.clock import LAST_TIME
from lro.filter import And, Comparison, Field, Filter, Free, Kind, Not, Operator, Or, Pattern, Presence

__all__ = ["EVER", "Condition", "created_between"]

VALUES: dict[str, str] = {
    "name": "name",
    "done": "ended_at IS NOT NULL",
    "response": "response",
    "error": "error",
    "error.code": "json_extract(error, '$.code')",
    "error.message": "json_extract(error, '$.message')",
    "error.details.reason": "error",
    "metadata": "name",
    "metadata.createTime": "created_at",
    "metadata.updateTime": "updated_at",
    "metadata.scheduleTime": "CASE WHEN state = 'PENDING' AND due_at > max(updated_at, created_at) THEN due_at END",
    "metadata.startTime": "started_at",
    "metadata.endTime": "ended_at",
    "metadata.deadline": "deadline_at",
    "metadata.expireTime": "expire_at",
    "metadata.cancelTime": "cancel_requested_at",
    "metadata.verb": "job",
    "metadata.target": "target",
    "metadata.state": "state",
    "metadata.attempt": "attempt",
    "metadata.requestedCancellation": "cancel_requested_at IS NOT NULL",
    "metadata.cancellable": "cancellable",
    "metadata.cancelReason": "coalesce(cancel_reason, '')",
    "metadata.cancelRequester": "coalesce(cancel_requester, '')",
    "metadata.cancelOutcome": "coalesce(cancel_outcome, '')",
    "metadata.statusMessage": "coalesce(status_message, '')",
    "metadata.lastError": "last_error",
    "metadata.lastError.code": "json_extract(last_error, '$.code')",
    "metadata.lastError.message": "json_extract(last_error, '$.message')",
    "metadata.lastError.details.reason": "last_error",
    "metadata.progress": "progress",
}
"""Every field's value: 1 or 0 for a BOOLEAN, microseconds for a TIME, JSON text for MESSAGE, TEXTS and FREE."""

_DETAILS = ("details", "reason")  # the way from a Status to the texts of TEXTS
_COMPARABLE = "('text', 'integer', 'real', 'true', 'false')"  # JSON types that `!=` compares

EVER = (-(2**63), 2**63 - 2)
"""From the earliest time that a column holds to the latest that has a next one."""


class Condition:
    """A filter as a condition of SQL.

    Attributes:
        text: Refers to the columns of `operations` by their bare names, and to its parameters by theirs.
        parameters: The values to bind.
    """

    def __init__(self, filter: Filter) -> None:  # noqa: A002 -- its name everywhere
        self.parameters: dict[str, object] = {}
        self.text = self._condition(filter)

    def _bind(self, value: object) -> str:
        name = f"filter_{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"

    def _condition(self, filter: Filter) -> str:  # noqa: A002 -- as above
        match filter:
            case And(operands):
                return f"({' AND '.join([self._condition(operand) for operand in operands])})" if operands else "1"
            case Or(operands):
                return f"({' OR '.join([self._condition(operand) for operand in operands])})"
            case Not(operand):
                return f"(({self._condition(operand)}) IS NOT TRUE)"
            case Presence(field):
                return self._presence(field)
            case Comparison(field, operator, Free() as literal):
                test = partial(self._compares, operator, literal)
                return self._exists(VALUES[field.path], field.keys, test, through_lists=operator == ":")
            case Comparison(field, _, Pattern() as literal) if field.kind is Kind.TEXTS:
                test = partial(self._is_text_like, literal)
                return self._exists(VALUES[field.path], _DETAILS, test, through_lists=True)
            case Comparison(field, "=", Pattern() as literal):
                return self._matches(VALUES[field.path], literal)
            case Comparison(field, "!=", Pattern() as literal):
                text = VALUES[field.path]
                return f"({text} IS NOT NULL AND NOT ({self._matches(text, literal)}))"
            case Comparison(field, operator, literal):
                value = literal.text if isinstance(literal, Pattern) else literal
                return f"({_value(field)}) {operator} {self._bind(value)}"

    def _presence(self, field: Field) -> str:
        value = VALUES[field.path]
        match field.kind:
            case Kind.BOOLEAN:
                return f"({value})"
            case Kind.NUMBER | Kind.CODE:
                return f"{value} <> 0"
            case Kind.TEXT | Kind.ENUM:
                return f"{value} <> ''"
            case Kind.TEXTS:
                return self._exists(value, _DETAILS, "{}.type = 'text'".format, through_lists=True)
            case Kind.FREE if field.keys:
                return self._exists(value, field.keys, "{}.type <> 'null'".format, through_lists=True)
            case _:
                return f"({value}) IS NOT NULL"

    def _matches(self, value: str, pattern: Pattern) -> str:
        if not pattern.text and (pattern.before or pattern.after):
            return f"{value} IS NOT NULL"
        text = self._bind(pattern.text)
        if pattern.before and pattern.after:
            return f"instr({value}, {text}) > 0"
        if pattern.after:
            return f"substr({value}, 1, length({text})) = {text}"
        return f"substr({value}, -length({text})) = {text}" if pattern.before else f"{value} = {text}"

    def _is_text_like(self, pattern: Pattern, node: str) -> str:
        return f"{node}.type = 'text' AND {self._matches(f'{node}.value', pattern)}"

    def _compares(self, operator: Operator, literal: Free, node: str) -> str:
        match operator:
            case "=":
                return self._equals(literal, node)
            case "!=":
                return f"{node}.type IN {_COMPARABLE} AND NOT {self._equals(literal, node)}"
            case ":":
                has_key = f"member.type <> 'null' AND {self._matches('member.key', literal.pattern)}"
                elements = f"json_each(CASE {node}.type WHEN 'array' THEN {node}.value END) AS element"
                members = f"json_each(CASE {node}.type WHEN 'object' THEN {node}.value END) AS member"
                return (
                    f"({self._equals(literal, node)}"
                    f" OR EXISTS (SELECT 1 FROM {elements} WHERE {self._equals(literal, 'element')})"
                    f" OR EXISTS (SELECT 1 FROM {members} WHERE {has_key}))"
                )
            case _:
                arms = [("text", f"{node}.value {operator} {self._bind(literal.pattern.text)}")]
                if literal.number is not None:
                    number = f"{node}.value {operator} {self._bind(literal.number)}"
                    arms += [("integer", number), ("real", number)]
                return _by_type(node, arms)

    def _equals(self, literal: Free, node: str) -> str:
        arms = [("text", self._matches(f"{node}.value", literal.pattern))]
        if literal.number is not None:
            number = f"{node}.value = {self._bind(literal.number)}"
            arms += [("integer", number), ("real", number)]
        if literal.truth is not None:
            arms.append(("true" if literal.truth else "false", "1"))
        return _by_type(node, arms)

    def _exists(self, root: str, keys: Sequence[str], test: Callable[[str], str], *, through_lists: bool) -> str:
        """Return whether there is a value at the end of these keys that passes a test.

        Keys are compared with those of json_each, since how a JSON path is quoted differs between SQLite's versions.

        Args:
            root: The JSON text.
            keys: The way from there, at least one.
            test: Makes the condition on the row of json_each that holds the value, given how that row is called.
            through_lists: True if a list on the way stands for each of its elements.
        """
        sources = [f"json_each({root}) AS key_0"]
        conditions: list[str] = []
        above = ""
        for number, key in enumerate(keys):
            node = f"key_{number}"
            if above and through_lists:
                element = f"element_{number}"
                each = f"WHEN 'array' THEN {above}.value WHEN 'object' THEN json_array(json({above}.value))"
                sources.append(f"json_each(CASE {above}.type {each} END) AS {element}")
                above = element
            if above:
                sources.append(f"json_each(CASE {above}.type WHEN 'object' THEN {above}.value END) AS {node}")
            conditions.append(f"{node}.key = {self._bind(key)}")
            above = node
        conditions.append(test(above))
        return f"EXISTS (SELECT 1 FROM {' CROSS JOIN '.join(sources)} WHERE {' AND '.join(conditions)})"


def _value(field: Field) -> str:
    """Return a field's value as the wire shows it: a time at the end of the year 9999 at the latest."""
    value = VALUES[field.path]
    return f"min({value}, {LAST_TIME})" if field.kind is Kind.TIME else value


def _by_type(node: str, arms: Iterable[tuple[str, str]]) -> str:
    cases = " ".join(f"WHEN '{kind}' THEN {test}" for kind, test in arms)
    return f"(CASE {node}.type {cases} ELSE 0 END)"


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
