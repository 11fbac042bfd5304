"""Where an orchestrator's page is, read from what it logs: with port 0 nobody else knows."""

from __future__ import annotations

from pathlib import Path

from deploy.log_lines import parse_line

_SAID = "the page is there"


def page_address(log: Path) -> str | None:
    """The URL of the latest start in an orchestrator's log, which has JSON lines; None before one."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    lines = (parse_line(line) for line in text.splitlines() if _SAID in line)
    urls = [str(line.facts["url"]) for line in lines if line is not None and "url" in line.facts]
    return urls[-1] if urls else None
