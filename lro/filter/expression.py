"""What a filter is once it is read: a checked expression over the fields of an operation.

Decides which fields there are and what kind each is. A store makes a condition of its own from an expression,
and may rely on it: every field is known, every literal has its field's type, every operator suits both.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Literal

from lro.lifecycle import CancelOutcome, State

__all__ = [
    "CHOICES",
    "EVERYTHING",
    "KINDS",
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
]


class Kind(Enum):
    """What a field holds, and so what it can be compared with.

    MESSAGE has fields and no value of its own. TEXTS is the text of each element of a list. FREE is JSON whose
    shape is the job's own affair.
    """

    BOOLEAN = auto()
    NUMBER = auto()
    CODE = auto()
    TIME = auto()
    ENUM = auto()
    TEXT = auto()
    TEXTS = auto()
    MESSAGE = auto()
    FREE = auto()


KINDS: dict[str, Kind] = {
    "name": Kind.TEXT,
    "done": Kind.BOOLEAN,
    "response": Kind.MESSAGE,
    "error": Kind.MESSAGE,
    "error.code": Kind.CODE,
    "error.message": Kind.TEXT,
    "error.details.reason": Kind.TEXTS,
    "metadata": Kind.MESSAGE,
    "metadata.createTime": Kind.TIME,
    "metadata.updateTime": Kind.TIME,
    "metadata.scheduleTime": Kind.TIME,
    "metadata.startTime": Kind.TIME,
    "metadata.endTime": Kind.TIME,
    "metadata.deadline": Kind.TIME,
    "metadata.expireTime": Kind.TIME,
    "metadata.cancelTime": Kind.TIME,
    "metadata.verb": Kind.TEXT,
    "metadata.target": Kind.TEXT,
    "metadata.state": Kind.ENUM,
    "metadata.attempt": Kind.NUMBER,
    "metadata.requestedCancellation": Kind.BOOLEAN,
    "metadata.cancellable": Kind.BOOLEAN,
    "metadata.cancelReason": Kind.TEXT,
    "metadata.cancelRequester": Kind.TEXT,
    "metadata.cancelOutcome": Kind.ENUM,
    "metadata.statusMessage": Kind.TEXT,
    "metadata.lastError": Kind.MESSAGE,
    "metadata.lastError.code": Kind.CODE,
    "metadata.lastError.message": Kind.TEXT,
    "metadata.lastError.details.reason": Kind.TEXTS,
    "metadata.progress": Kind.FREE,
}
"""Every field that a filter may name, by its path on the wire."""

CHOICES: dict[str, type[StrEnum]] = {"metadata.state": State, "metadata.cancelOutcome": CancelOutcome}
"""The values of each ENUM field."""

Operator = Literal["=", "!=", "<", "<=", ">", ">=", ":"]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an operation.

    Attributes:
        path: One of KINDS.
        keys: Of a FREE field, the way from it down to the value, list elements left out; else empty.
    """

    path: str
    keys: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it holds."""
        return KINDS[self.path]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text to be equal to, but for what a wildcard stands for.

    Attributes:
        text: The text, wildcards left out.
        after: True if anything may stand after it.
        before: True if anything may stand before it.
    """

    text: str
    after: bool = False
    before: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """A literal whose type depends on the JSON value that it meets.

    Attributes:
        pattern: What a text is compared with.
        number: What a number is compared with, or None.
        truth: What a boolean is compared with, or None.
    """

    pattern: Pattern
    number: int | float | None = None
    truth: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """True of an operation whose field compares so with a literal.

    An operation that lacks a message on the way to the field, the time or the JSON value itself, does not
    match, not with `!=` either; a text or enum that is not set is "" (AIP-160, *Traversal*).

    Attributes:
        field: On the left; never a MESSAGE.
        operator: ":" stands for "is, or is a list that has, or is an object with this key", of TEXTS and FREE
            only; "=" and "!=" are all that BOOLEAN and ENUM have.
        literal: By the field's kind: a bool; a number, also for CODE; microseconds since 1970 for TIME; the
            value of an ENUM; a Pattern for TEXT and TEXTS; Free.
    """

    field: Field
    operator: Operator
    literal: "bool | int | float | str | Pattern | Free"


@dataclass(frozen=True, slots=True)
class Presence:
    """True of an operation that has this field: not false, 0 or "", but for a FREE one, which must not be null."""

    field: Field


@dataclass(frozen=True, slots=True)
class Not:
    """True where the operand is not."""

    operand: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    """True where all operands are."""

    operands: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """True where one operand is."""

    operands: "tuple[Filter, ...]"


Filter = Comparison | Presence | Not | And | Or

EVERYTHING = And(())
"""The filter that every operation passes."""
