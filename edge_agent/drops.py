"""What goes wrong with single messages: each is counted, and said in the log without flooding it."""

from __future__ import annotations

import time
from collections import Counter

from shared.logs import get_log

log = get_log(__name__)

_INTERVAL_S = 10.0


class Drops:
    """Counts by kind; logs the first of a kind at once and then at most one line in 10 s."""

    def __init__(self, event: str = "a message was dropped") -> None:
        self._event = event
        self.counts: Counter[str] = Counter()
        self._said: dict[str, tuple[float, int]] = {}

    def drop(self, kind: str, text: str, **facts: object) -> None:
        """Count one message of that kind; `text` says why, `facts` which."""
        self.counts[kind] += 1
        now = time.monotonic()
        at, count = self._said.get(kind, (-_INTERVAL_S, 0))
        if now - at >= _INTERVAL_S:
            self._said[kind] = (now, self.counts[kind])
            more = self.counts[kind] - count - 1
            log.warning(self._event, kind=kind, text=text, more_before=more, **facts)
