"""What an orchestrator says of itself."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from orchestrator.core.leadership import Title
from orchestrator.options import OrchestratorOptions
from shared.ids import name_from
from shared.messages.operation import Limits, OrchestratorState
from shared.sentences import worded

_LONGEST_HOST = 40


def process_name() -> str:
    """A name for this process that no other has: machines may be clones, and containers count from 1."""
    host = name_from(socket.gethostname()[:_LONGEST_HOST], "host")
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


def own_state(
    options: OrchestratorOptions,
    state: Literal["starting", "online", "offline", "lost"],
    *,
    title: Title,
    incarnation: int,
    standbys: Sequence[str] = (),
    set_aside: int = 0,
) -> OrchestratorState:
    """The retained state of a leader, or of one that claims to be."""
    settings = options.dispatch
    return worded(
        OrchestratorState(
            state=state,
            incarnation=incarnation,
            term=title.term,
            leader=title.name or None,
            standbys=list(standbys),
            host=socket.gethostname(),
            pid=os.getpid(),
            version=own_version(),
            limits=Limits(
                max_item_bytes=settings.max_item_bytes,
                max_queue_items=settings.max_queued_items,
                max_queue_bytes=settings.max_queued_bytes,
            ),
            set_aside=set_aside,
        )
    )


def own_version() -> str:
    """Of this software, `unknown` where it is not installed."""
    try:
        return version("amp4ec")
    except PackageNotFoundError:
        return "unknown"
