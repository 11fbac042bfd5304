"""Names that stand in topics: what they may look like, and how they are checked."""

from __future__ import annotations

import re

from shared.errors import ConfigurationError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ORCHESTRATOR = "orchestrator"
"""The peer name under which the orchestrator gives and takes artifacts."""
HOME_ASSISTANT = "homeassistant"
"""Home Assistant's discovery prefix unless it was given another."""
DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(kind: str, name: str) -> str:
    """`name`, when it may stand as one level of a topic.

    Raises:
        ConfigurationError: it is empty, too long, or has a character such as `/`, `+`, `#` or a space.
    """
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{kind} {name!r} cannot be used in a topic",
            expected="1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit",
            got=repr(name),
        )
    return name


def check_prefix(prefix: str) -> str:
    """`prefix`, when it may stand before topics that are not below a cluster's root.

    Raises:
        ConfigurationError: one of its levels is no name.
    """
    if not all(NAME.fullmatch(level) for level in prefix.split("/")):
        raise ConfigurationError(
            "discovery prefix cannot be used",
            expected=f"names with '/' between them, such as {HOME_ASSISTANT}",
            got=repr(prefix),
        )
    return prefix


def name_from(text: str, fallback: str) -> str:
    """The nearest legal name to `text` (a host or file name), or `fallback` when nothing is left."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:64]
    return cleaned if NAME.fullmatch(cleaned) else fallback
