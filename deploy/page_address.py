"""Where an orchestrator's page is, read from what it logs: with port 0 nobody else knows."""

from __future__ import annotations

import re
from pathlib import Path

_SAID = re.compile(r'the page is at (http://[^/\s"]+/)')


def page_address(log: Path) -> str | None:
    """The URL of the latest start in an orchestrator's log; None before there is one."""
    try:
        said = _SAID.findall(log.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    return said[-1] if said else None
