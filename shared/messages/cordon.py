"""Nodes that an operator takes out of plans for a while: the requests, and what is retained of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from shared.messages import Name, Version
from shared.messages.operation import Transaction

Reason = Annotated[str, Meta(max_length=256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CordonRequest:
    """Give a node no model that does not run there already. `reason` is for people."""

    transaction: Transaction
    node: Name
    reason: Reason = ""
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequest:
    """Give a node nothing, and move what runs there elsewhere, make before break.

    It ends well when the node holds nothing. A model that fits nowhere else stays where it is rather than
    not being served: after `timeout_s` the error says which, and the node stays drained of the rest.
    """

    transaction: Transaction
    node: Name
    reason: Reason = ""
    timeout_s: Annotated[float, Meta(gt=0, le=86400)] = 120.0
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UncordonRequest:
    """Plan with a node again, whether it was cordoned or drained."""

    transaction: Transaction
    node: Name
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    """A node is cordoned, or with `drain` drained, since `at` (wall time, ISO 8601).

    Retained until it is taken back, or the node is forgotten: whoever leads next keeps to it.
    """

    text: str = ""
    node: Name
    drain: bool
    at: str
    reason: Reason = ""
    v: Version = 1
