"""Filters as conditions in SQLite's SQL; see `conditions`."""

from typing import ClassVar

from lro.store.conditions import Condition

__all__ = ["SQLiteCondition"]


class SQLiteCondition(Condition):
    """A filter as a condition of SQLite's; a node is a row of json_each.

    Keys are compared with those of json_each, since how a JSON path is quoted differs between SQLite's versions.
    """

    VALUES: ClassVar[dict[str, str]] = {
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

    def _mark(self, name: str, value: object) -> str:
        del value
        return f":{name}"

    def _contains(self, value: str, text: str) -> str:
        return f"instr({value}, {text}) > 0"

    def _ends(self, value: str, text: str) -> str:
        return f"substr({value}, -length({text})) = {text}"

    def _root(self, json: str, node: str) -> str:
        return f"json_each({json}) AS {node}"

    def _members(self, above: str, node: str) -> str:
        return f"json_each(CASE {above}.type WHEN 'object' THEN {above}.value END) AS {node}"

    def _elements(self, above: str, node: str) -> str:
        return f"json_each(CASE {above}.type WHEN 'array' THEN {above}.value END) AS {node}"

    def _elements_or_itself(self, above: str, node: str) -> str:
        each = f"WHEN 'array' THEN {above}.value WHEN 'object' THEN json_array(json({above}.value))"
        return f"json_each(CASE {above}.type {each} END) AS {node}"

    def _text(self, node: str) -> str:
        return f"{node}.value"

    def _number(self, node: str) -> str:
        return f"{node}.value"

    def _is_text(self, node: str) -> str:
        return f"{node}.type = 'text'"

    def _is_scalar(self, node: str) -> str:
        return f"{node}.type IN ('text', 'integer', 'real', 'true', 'false')"

    def _is_something(self, node: str) -> str:
        return f"{node}.type <> 'null'"

    def _by_type(self, node: str, text: str, number: str | None, truth: bool | None = None) -> str:
        arms = [f"WHEN 'text' THEN {text}"]
        if number is not None:
            arms += [f"WHEN 'integer' THEN {number}", f"WHEN 'real' THEN {number}"]
        if truth is not None:
            arms.append(f"WHEN '{'true' if truth else 'false'}' THEN TRUE")
        return f"(CASE {node}.type {' '.join(arms)} ELSE FALSE END)"
