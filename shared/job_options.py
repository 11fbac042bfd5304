"""What a request may ask of the queue that it waits in: the values of its user properties."""

from __future__ import annotations

from enum import StrEnum

from shared.errors import ConfigurationError

PRIORITIES = range(10)
"""Of the user property `priority`: higher goes first."""
DEFAULT_PRIORITY = 5


class Policy(StrEnum):
    """Of the user property `policy`: what happens to a job when its client sends a newer one."""

    LOSSLESS = "lossless"
    """Nothing; the default."""
    LATEST = "latest"
    """For cameras: while it waits, it gives way to the newer one of this policy for the same model."""


def parse_priority(text: str) -> int | None:
    """The priority that a user property says; None where it says none."""
    # One character: int() would take much that is no digit of ours.
    return int(text) if len(text) == 1 and text in "0123456789" else None


def check_priority(priority: int) -> None:
    """Raises ConfigurationError when it is none."""
    if priority not in PRIORITIES:
        raise ConfigurationError(
            "a job's priority cannot be used",
            expected=f"a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}; higher goes first",
            got=repr(priority),
        )
