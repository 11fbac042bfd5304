"""The promises, held against the books of a run."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.cluster.chaos.ledger import Job, Kind, Ledger, Outcome
from tests.cluster.chaos.plant import AGENTS, ORCHESTRATORS
from tests.cluster.chaos.retained import Expected
from tests.cluster.chaos.schedule import Fault, FaultKind
from tests.cluster.chaos.usage import Held, Usage

RECOVERY_S = 60.0
"""After every fault's end an answer comes within this; the figures say how much sooner."""
_SETTLE_S = 10.0
"""After its start a broker may not yet know who had subscribed."""
_AUTOSAVE_S = 35.0
"""A broker that is killed comes back as it was up to so long before."""
_FORGETTING = frozenset(
    {
        FaultKind.BROKER_KILL,
        FaultKind.LEADER_KILL,
        FaultKind.LEADER_FREEZE,
        FaultKind.LEADER_CUT,
        FaultKind.ORCHESTRATORS_KILL,
    }
)
"""What may take the knowledge along that a job was answered a moment ago."""
_EXAMPLES = 5
_LIFE_S = 60.0
"""A process is looked at when it lived so long after its start-up, `_WARM_S`."""
_WARM_S = 20.0
_POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads that an event loop may come to have for blocking calls, one by one, and then keeps."""
_FILES, _THREADS = 8, 4 + _POOL
_COPIES = 3
"""Of one artifact: of the generation in force, the next one, and one that is being let go."""
_ARTIFACTS = 256
"""The weights of the one model, and the stages that an orchestrator keeps at hand (`library.MOST_STAGES`)."""
_MEMORY_RATIO, _MEMORY_BYTES = 0.2, 24 * 1024**2


@dataclass(slots=True)
class Struck:
    """A fault that was made; times are monotonic seconds."""

    fault: Fault
    began_at: float
    broken_at: float = 0.0
    mended_at: float = 0.0
    recovery_s: float | None = None
    """From its beginning to the first right answer of a job that was sent after it."""
    gap_s: float | None = None
    """The longest time without a right answer, from its beginning until it was over and got over."""
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A promise, whether it held, and what was found."""

    name: str
    promise: str
    held: bool
    found: str


def measure(struck: Sequence[Struck], ledger: Ledger) -> None:
    """Fill in each fault's recovery and longest gap."""
    done = ledger.right_answers()
    times = [job.answered_at or 0.0 for job in done]
    for each in struck:
        after = (job.answered_at for job in done if job.sent_at >= each.broken_at)
        first = next(after, None)
        each.recovery_s = None if first is None else (first or 0.0) - each.began_at
        over = max(each.mended_at, first or each.mended_at)
        within = [time for time in times if each.began_at <= time <= over]
        edges = [each.began_at, *within, over]
        each.gap_s = max((later - sooner for sooner, later in pairwise(edges)), default=0.0)


def check(
    *,
    ledger: Ledger,
    struck: Sequence[Struck],
    usage: Usage,
    retained: frozenset[str],
    expected: Expected,
    ended: Mapping[str, str],
) -> list[Check]:
    """Every promise."""
    return [
        *_answers(ledger, struck),
        _recovery(struck, ledger),
        Check(
            name="ghosts",
            promise="what the broker retains is of nodes that live and models that are served",
            held=expected.fits(retained),
            found=_or_nothing(
                [f"too much: {topic}" for topic in expected.ghosts(retained)]
                + [f"missing: {topic}" for topic in expected.missing(retained)]
            ),
        ),
        Check(
            name="alive",
            promise="no process ends that nobody ended",
            held=not ended,
            found=_or_nothing(f"{name} ended:\n{tail}" for name, tail in ended.items()),
        ),
        leaks(usage),
    ]


def _answers(ledger: Ledger, struck: Sequence[Struck]) -> Iterator[Check]:
    ours = [job for job in ledger.jobs if job.kind is Kind.CLIENT]
    stock = [job for job in ledger.jobs if job.kind is not Kind.CLIENT]
    broker_lost = [
        (each.began_at, each.mended_at + _SETTLE_S)
        for each in struck
        if each.fault.kind is FaultKind.BROKER_KILL
    ]
    forgot = [
        (each.began_at - _AUTOSAVE_S, each.mended_at + _SETTLE_S)
        for each in struck
        if each.fault.kind in _FORGETTING
    ]
    yield Check(
        name="our client: answered",
        promise="every job of amp4ec.Client ends in a result, whatever breaks",
        held=all(job.outcome is Outcome.RIGHT for job in ours),
        found=_count(ours, (job for job in ours if job.outcome is not Outcome.RIGHT)),
    )
    unanswered = [job for job in stock if job.outcome in (Outcome.OPEN, Outcome.ERROR)]
    lost = [
        job for job in unanswered if not any(job.open_within(*window) for window in broker_lost)
    ]
    yield Check(
        name="stock clients: answered",
        promise="a job of a stock client is answered unless the broker was killed while it was open",
        held=not lost,
        found=f"{_count(stock, lost)}; {len(unanswered) - len(lost)} lost with a killed broker",
    )
    yield Check(
        name="correct",
        promise="every answer is the whole model's within 1e-5",
        held=all(job.outcome is not Outcome.WRONG for job in ledger.jobs),
        found=_count(ledger.jobs, (job for job in ledger.jobs if job.outcome is Outcome.WRONG)),
    )
    twice = [(name, each) for name, each in ledger.deliveries.items() if len(each.digests) > 1]
    excusable = [name for name, each in twice if any(a <= each.first_at <= b for a, b in forgot)]
    repeated = sum(each.count > 1 for each in ledger.deliveries.values()) - len(twice)
    yield Check(
        name="once",
        promise="no job gets two different answers, unless broker or orchestrator was killed meanwhile",
        held=len(excusable) == len(twice),
        found=f"{len(twice)} of {len(ledger.deliveries)} jobs were answered twice on the wire,"
        f" {len(excusable)} of them around a kill; {repeated} saw the same bytes again"
        + "".join(f"; {name}" for name, _ in twice[:_EXAMPLES] if name not in excusable),
    )


def _recovery(struck: Sequence[Struck], ledger: Ledger) -> Check:
    late = []
    answers = ledger.right_answers()
    for each in struck:
        first = next((job.answered_at for job in answers if job.sent_at >= each.mended_at), None)
        if each.failure:
            late.append(f"{each.fault}: {each.failure}")
        elif first is None or first - each.mended_at > RECOVERY_S:
            late.append(f"{each.fault}: no answer within {RECOVERY_S:g} s of its end")
    return Check(
        name="recovery",
        promise=f"within {RECOVERY_S:g} s of a fault's end a new job is answered",
        held=not late,
        found=_or_nothing(late) if late else f"{len(struck)} faults, all got over",
    )


def leaks(usage: Usage) -> Check:
    """Whether a process that lived long enough holds more in the end than when it was warm."""
    found, looked = [], 0
    agents = [held for held in usage.seen if held.name in AGENTS]
    others = [held for held in usage.seen if held.name in ORCHESTRATORS]
    for name, life in usage.lives():
        warm = [held for held in life if held.at - life[0].at >= _WARM_S]
        if not warm or warm[-1].at - warm[0].at < _LIFE_S:
            continue
        looked += 1
        third = len(warm) // 3
        # Who stood by may lead, and a plan may ask of any agent what it asked of another.
        peers = agents if name in AGENTS else others if name in ORCHESTRATORS else []
        known = _early_peak(peers)
        found += list(_grown(name, warm[:third], warm[-third:], known))
    return Check(
        name="leaks",
        promise=f"files within {_FILES}, threads within {_THREADS}, memory within"
        f" {_MEMORY_RATIO:.0%} and {_MEMORY_BYTES >> 20} MiB of the first third of a life",
        held=not found,
        found=_or_nothing(found) if found else f"{looked} lives of a minute and more",
    )


def _early_peak(peers: Sequence[Held]) -> float:
    """The most that one of several processes held in the first half of the run; 0 of none."""
    if not peers:
        return 0.0
    half = (peers[0].at + peers[-1].at) / 2
    return max(held.resident_bytes for held in peers if held.at <= half)


def _grown(
    name: str, before: Sequence[Held], after: Sequence[Held], known_bytes: float
) -> Iterator[str]:
    """What a process holds more of; memory counts from `known_bytes` where that is more than it had."""

    def typical(lives: Sequence[Held], what: str) -> float:
        return statistics.median(getattr(held, what) for held in lives)

    pid = before[0].pid
    for what, room in (("files", _FILES), ("threads", _THREADS)):
        first, last = typical(before, what), typical(after, what)
        if last > first + room:
            yield f"{name} ({pid}): {what} {first:g} -> {last:g}"
    if after[-1].copies > _COPIES:
        yield f"{name} ({pid}): the same artifact is open {after[-1].copies} times"
    if after[-1].artifacts > _ARTIFACTS:
        yield f"{name} ({pid}): {after[-1].artifacts} artifacts are open"
    first, last = typical(before, "resident_bytes"), typical(after, "resident_bytes")
    first = max(first, known_bytes)
    if last > first * (1 + _MEMORY_RATIO) + _MEMORY_BYTES:
        yield f"{name} ({pid}): {first / 1e6:.0f} -> {last / 1e6:.0f} MB"


def _count(jobs: Sequence[Job], bad: Iterable[Job]) -> str:
    found = list(bad)
    examples = "".join(
        f"\n  {job.kind} {job.job or '?'}: {job.outcome} {job.detail}" for job in found[:_EXAMPLES]
    )
    return f"{len(found)} of {len(jobs)} not{examples}" if found else f"{len(jobs)} of {len(jobs)}"


def _or_nothing(lines: Iterable[str]) -> str:
    return "; ".join(lines) or "nothing"
