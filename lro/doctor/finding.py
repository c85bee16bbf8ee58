"""What an examination finds, and how bad it is."""

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Examination", "Finding", "Severity"]


class Severity(StrEnum):
    """How bad it is."""

    NOTE = "note"
    """Worth knowing; nothing is wrong."""

    WARNING = "warning"
    """Something is or may become wrong, and should be seen to."""

    ERROR = "error"
    """The service can't work so, or has lost something."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: How bad it is.
        check: The stable name of what was looked at, such as `file-mode`.
        what: What was found.
        advice: What to do.
    """

    severity: Severity
    check: str
    what: str
    advice: str


@dataclass(slots=True)
class Examination:
    """What was looked at, and what was found.

    Attributes:
        where: The database.
        opened: False if it could not be read at all.
        facts: What there is, by name.
        findings: What is to be said of it, in the order in which it was found.
    """

    where: str
    opened: bool = False
    facts: dict[str, object] = field(default_factory=dict[str, object])
    findings: list[Finding] = field(default_factory=list[Finding])

    def note(self, check: str, what: str, advice: str) -> None:
        """Add what is worth knowing."""
        self.findings.append(Finding(Severity.NOTE, check, what, advice))

    def warn(self, check: str, what: str, advice: str) -> None:
        """Add what should be seen to."""
        self.findings.append(Finding(Severity.WARNING, check, what, advice))

    def fail(self, check: str, what: str, advice: str) -> None:
        """Add what keeps the service from its work."""
        self.findings.append(Finding(Severity.ERROR, check, what, advice))

    @property
    def sound(self) -> bool:
        """True if it could be read and there is nothing but notes."""
        return self.opened and all(finding.severity is Severity.NOTE for finding in self.findings)
