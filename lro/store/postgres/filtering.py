"""Filters as conditions in PostgreSQL's SQL, and the statements of a page; see `conditions` and `walk`."""

from decimal import Decimal
from typing import ClassVar

from lro.store.conditions import Condition
from lro.store.walk import Listing

__all__ = ["PostgresCondition", "PostgresListing"]

MOST_EXACT = 2**63
_SCALARS = "('string', 'number', 'boolean')"


class PostgresCondition(Condition):
    """A filter as a condition of PostgreSQL's; a node is a row with a column `value` of type jsonb."""

    VALUES: ClassVar[dict[str, str]] = {
        "name": "name",
        "done": "ended_at IS NOT NULL",
        "response": "response",
        "error": "error",
        "error.code": "(error::jsonb ->> 'code')::bigint",
        "error.message": "(error::jsonb ->> 'message') COLLATE \"C\"",
        "error.details.reason": "error",
        "metadata": "name",
        "metadata.createTime": "created_at",
        "metadata.updateTime": "updated_at",
        "metadata.scheduleTime": (
            "(CASE WHEN state = 'PENDING' AND due_at > greatest(updated_at, created_at) THEN due_at END)"
        ),
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
        "metadata.lastError.code": "(last_error::jsonb ->> 'code')::bigint",
        "metadata.lastError.message": "(last_error::jsonb ->> 'message') COLLATE \"C\"",
        "metadata.lastError.details.reason": "last_error",
        "metadata.progress": "progress",
    }

    def _bind(self, value: object) -> str:
        if isinstance(value, float) and value.is_integer() and abs(value) < MOST_EXACT:
            value = Decimal(int(value))  # compared exactly, as Python does, with integers beyond 2**53
        return super()._bind(value)

    def _mark(self, name: str, value: object) -> str:
        return f"%({name})s::text" if isinstance(value, str) else f"%({name})s"

    def _contains(self, value: str, text: str) -> str:
        return f"strpos({value}, {text}) > 0"

    def _ends(self, value: str, text: str) -> str:
        return f"right({value}, length({text})) = {text}"

    def _root(self, json: str, node: str) -> str:
        return f"jsonb_each({_one(f'{json}::jsonb', 'object')}) AS {node}"

    def _members(self, above: str, node: str) -> str:
        return f"jsonb_each({_one(f'{above}.value', 'object')}) AS {node}"

    def _elements(self, above: str, node: str) -> str:
        return f"jsonb_array_elements({_one(f'{above}.value', 'array')}) AS {node}(value)"

    def _elements_or_itself(self, above: str, node: str) -> str:
        each = f"WHEN 'array' THEN {above}.value WHEN 'object' THEN jsonb_build_array({above}.value)"
        return f"jsonb_array_elements(CASE jsonb_typeof({above}.value) {each} END) AS {node}(value)"

    def _text(self, node: str) -> str:
        return f"({node}.value #>> '{{}}') COLLATE \"C\""

    def _number(self, node: str) -> str:
        return f"({node}.value #>> '{{}}')::numeric"

    def _is_text(self, node: str) -> str:
        return f"jsonb_typeof({node}.value) = 'string'"

    def _is_scalar(self, node: str) -> str:
        return f"jsonb_typeof({node}.value) IN {_SCALARS}"

    def _is_something(self, node: str) -> str:
        return f"jsonb_typeof({node}.value) <> 'null'"

    def _by_type(self, node: str, text: str, number: str | None, truth: bool | None = None) -> str:
        arms = [f"WHEN 'string' THEN {text}"]
        if number is not None:
            arms.append(f"WHEN 'number' THEN {number}")
        if truth is not None:
            arms.append(f"WHEN 'boolean' THEN {'' if truth else 'NOT '}({node}.value)::boolean")
        return f"(CASE jsonb_typeof({node}.value) {' '.join(arms)} ELSE FALSE END)"


def _one(json: str, kind: str) -> str:
    """Return a jsonb, or NULL if it is of another kind: a function in FROM makes no row of that."""
    return f"CASE jsonb_typeof({json}) WHEN '{kind}' THEN {json} END"


class PostgresListing(Listing):
    """The statements of a listing on PostgreSQL, whose planner finds the index by itself."""

    CONDITION = PostgresCondition

    def _mark(self, name: str) -> str:
        return f"%({name})s"

    def _source(self, index: str) -> str:
        del index
        return "lro.operations"
