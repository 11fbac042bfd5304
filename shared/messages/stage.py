"""Stages: what a node shall run, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.errors import ForgedReason
from shared.messages import Count, Digest, Key, Name, Seconds, Term, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """An artifact by the SHA-256 of its bytes, with its size in bytes."""

    digest: Digest
    size: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAssignment:
    """One stage that a node shall hold ready.

    `graph` is the stage's graph as JSON, `weights` the blobs that it names. The first stage also
    gets `preprocess`, the digest of the model's transform, when the model takes images. `compression` is how
    it sends its tensors to the next stage (`shared.compression`); what it receives says that by itself. On a
    closed cluster every message of the pipeline carries a MAC made with `key`.
    """

    model: Name
    pipeline: Name
    generation: Count
    stage: Count
    num_stages: Count
    runtime: str
    graph: Blob
    weights: list[Blob]
    preprocess: Blob | None = None
    key: Key | None = field(default=None, repr=False)
    compression: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The full desired state of a node: what is not named is unloaded.

    A node obeys the greatest (`term`, `revision`) that it has seen: `revision` only grows under one leader,
    `term` with each new one, so that an old leader is not listened to. `prefetch` are blobs worth having in
    the cache when there is nothing better to do: with them a later re-plan ships no weights.
    """

    text: str = ""
    node: Name
    revision: Count
    term: Term = 0
    stages: list[StageAssignment] = field(default_factory=list)
    prefetch: list[Blob] = field(default_factory=list)
    v: Version = 1


StageState = Literal["fetching", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """How far one assigned stage is; `reason` says why it failed.

    While it fetches, `here_bytes` of what it needs are on the node. `fetched_bytes` came over the bus for it,
    as they travelled, in `fetch_s`; from there it took `load_s` until it took activations. Where it failed
    because the disk is full, `needs_disk_bytes` free would do.
    """

    model: Name
    pipeline: Name
    generation: Count
    stage: Count
    state: StageState
    reason: str = ""
    load_s: Seconds = 0.0
    fetch_s: Seconds = 0.0
    here_bytes: Count = 0
    fetched_bytes: Count = 0
    needs_disk_bytes: Count = 0


VouchedTopic = Literal["assignment", "orchestrator_state", "activation"]
"""What agents take from those only who may say it, as the topic table calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgery:
    """How many messages of one kind a node dropped, since nobody vouched for them who may."""

    topic: VouchedTopic
    reason: ForgedReason
    count: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every stage that the node holds or tries to hold, after each change.

    `term` is the greatest that the node has heard of; `refused` counts the assignments of lesser ones,
    `forged` the messages that nobody vouched for.
    """

    text: str = ""
    node: Name
    incarnation: Count
    revision: Count
    term: Term = 0
    refused: Count = 0
    stages: list[StageReport] = field(default_factory=list)
    forged: list[Forgery] = field(default_factory=list)
    v: Version = 1
