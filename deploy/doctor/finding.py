"""What a check found: a line for people, fields for programs, and always how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters; in this order."""

    OK = "ok"
    """Looked at, nothing to do."""
    NOTE = "note"
    """Good to know, or what could not be seen from here."""
    WARNING = "warning"
    """It works, and will not always, or not well."""
    ERROR = "error"
    """Something does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. `check` is a word for programs, such as `broker.nodelay`."""

    check: str
    level: Level
    text: str
    mend: str = ""
    """What to do; empty where nothing is to be done."""

    def __post_init__(self) -> None:
        if self.level in (Level.WARNING, Level.ERROR) and not self.mend:
            raise ValueError(f"{self.check}: a finding without a remedy")


def ok(check: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, level=Level.OK, text=text)


def note(check: str, text: str, mend: str = "") -> Finding:
    """Good to know."""
    return Finding(check=check, level=Level.NOTE, text=text, mend=mend)


def warning(check: str, text: str, mend: str) -> Finding:
    """It works, and will not always."""
    return Finding(check=check, level=Level.WARNING, text=text, mend=mend)


def error(check: str, text: str, mend: str) -> Finding:
    """Something does not work."""
    return Finding(check=check, level=Level.ERROR, text=text, mend=mend)


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether there is nothing to mend."""
    return all(finding.level in (Level.OK, Level.NOTE) for finding in findings)
