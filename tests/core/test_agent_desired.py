"""The agent's core: the table of stage lives row by row, and random histories with invariants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent.core.desired import (
    Action,
    Asked,
    AssignmentReceived,
    BlobsFailed,
    BlobsReady,
    BusConnected,
    CancelFetch,
    Desired,
    Event,
    FetchBlobs,
    Load,
    MessageForged,
    OrchestratorBorn,
    Phase,
    Prefetch,
    PrefetchEnded,
    PublishReport,
    StageLoaded,
    StageLoadFailed,
    StageUnloaded,
    Unload,
)
from shared.messages.stage import Assignment, Blob, Forgery, StageAssignment

BLOB = Blob(digest="0" * 64, size=1)
OTHER = Blob(digest="1" * 64, size=2)


def stage(index: int = 0, generation: int = 1, graph: Blob = BLOB) -> StageAssignment:
    return StageAssignment(
        model="m", pipeline="m-0", generation=generation, stage=index, num_stages=3,
        runtime="torch", graph=graph, weights=[BLOB],
    )  # fmt: skip


def assignment(
    revision: int, *stages: StageAssignment, prefetch: tuple[Blob, ...] = (), term: int = 0
) -> Event:
    return AssignmentReceived(
        Assignment(
            node="n", revision=revision, term=term, stages=list(stages), prefetch=list(prefetch)
        )
    )


def make() -> Desired:
    return Desired("n", 7)


def states(actions: list[Action]) -> list[tuple[int, str, str]]:
    """Stage, state and reason of the last report among `actions`."""
    reports = [action.report for action in actions if isinstance(action, PublishReport)]
    assert reports, actions
    return [(row.stage, row.state, row.reason) for row in reports[-1].stages]


def without_reports(actions: list[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, PublishReport)]


FETCHING: tuple[Event, ...] = (assignment(1, stage()),)
LOADING: tuple[Event, ...] = (*FETCHING, BlobsReady(1, 10))
READY: tuple[Event, ...] = (*LOADING, StageLoaded(1, 0.5))
NOBODY = assignment(2)

TABLE: list[tuple[str, tuple[Event, ...], Event, list[Action], Phase | None]] = [
    ("named", (), assignment(1, stage()), [FetchBlobs(1, stage())], Phase.FETCHING),
    ("blobs ready", FETCHING, BlobsReady(1, 10), [Load(1, stage())], Phase.LOADING),
    ("blobs failed", FETCHING, BlobsFailed(1, "no"), [], Phase.FAILED),
    ("not named while fetching", FETCHING, NOBODY, [CancelFetch(1)], None),
    ("loaded", LOADING, StageLoaded(1, 0.5), [], Phase.READY),
    ("load failed", LOADING, StageLoadFailed(1, "no"), [], Phase.FAILED),
    ("not named while loading", LOADING, NOBODY, [], Phase.ABANDONED),
    (
        "abandoned, then loaded",
        (*LOADING, NOBODY),
        StageLoaded(1, 0.5),
        [Unload(1, stage())],
        Phase.UNLOADING,
    ),
    ("abandoned, then failed", (*LOADING, NOBODY), StageLoadFailed(1, "no"), [], None),
    ("not named while ready", READY, NOBODY, [Unload(1, stage())], Phase.UNLOADING),
    ("unloaded", (*READY, NOBODY), StageUnloaded(1), [], None),
    ("failed, no longer named", (*FETCHING, BlobsFailed(1, "no")), NOBODY, [], None),
    ("late blobs", READY, BlobsReady(1, 10), [], Phase.READY),
    ("late failure", READY, StageLoadFailed(1, "no"), [], Phase.READY),
]


@pytest.mark.parametrize(("text", "before", "event", "actions", "phase"), TABLE, ids=lambda v: v)
def test_table(
    text: str,
    before: tuple[Event, ...],
    event: Event,
    actions: list[Action],
    phase: Phase | None,
) -> None:
    core = make()
    for each in before:
        core.step(each)
    assert without_reports(core.step(event)) == actions
    held = core.lives.get(1)
    assert (held.phase if held else None) is phase


def test_report_follows_every_change() -> None:
    core = make()
    assert states(core.step(assignment(1, stage()))) == [(0, "fetching", "")]
    assert states(core.step(BlobsReady(1, 10))) == [(0, "loading", "")]
    actions = core.step(StageLoaded(1, 0.5))
    assert states(actions) == [(0, "ready", "")]
    (report,) = actions
    assert isinstance(report, PublishReport)
    assert report.report.incarnation == 7
    assert report.report.stages[0].load_s == 0.5
    assert report.report.stages[0].fetched_bytes == 10
    assert states(core.step(NOBODY)) == []


def test_unknown_artifact_is_reported_and_not_tried_again_until_named_again() -> None:
    core = make()
    core.step(assignment(1, stage()))
    assert states(core.step(BlobsFailed(1, "no blob abc"))) == [(0, "failed", "no blob abc")]
    assert core.step(assignment(1, stage())) == []
    assert without_reports(core.step(assignment(2, stage()))) == [FetchBlobs(2, stage())]


def test_older_revision_is_ignored_and_counted() -> None:
    core = make()
    core.step(assignment(5, stage()))
    assert core.step(assignment(4)) == []
    assert core.outdated == 1
    assert core.step(assignment(5, stage())) == []
    assert core.outdated == 1
    assert [held.stage for held in core.named()] == [stage()]


def test_a_leader_of_a_greater_term_is_obeyed_whatever_its_revision() -> None:
    core = make()
    core.step(assignment(500, stage(), term=3))
    assert without_reports(core.step(assignment(1, stage(1), term=4)))[-1] == FetchBlobs(
        2, stage(1)
    )
    assert (core.term, core.revision, core.refused) == (4, 1, 0)
    (report,) = core.step(assignment(501, stage(), term=3))
    assert isinstance(report, PublishReport)
    assert (report.report.term, report.report.refused) == (4, 1), "the old leader hears of it"
    assert [held.stage for held in core.named()] == [stage(1)]


def test_a_birth_ends_the_obedience_to_leaders_of_lesser_terms() -> None:
    core = make()
    core.step(assignment(5, stage(), term=3))
    assert states(core.step(OrchestratorBorn(20, term=4))) == [(0, "fetching", "")]
    core.step(assignment(6, term=3))
    assert (core.refused, [held.stage for held in core.named()]) == (1, [stage()])
    assert core.step(OrchestratorBorn(10, term=3)) == [], "an old leader's birth is no news"
    assert without_reports(core.step(assignment(2, term=4))) == [CancelFetch(1)]


def test_the_term_of_an_earlier_life_counts() -> None:
    core = Desired("n", 7, term=9)
    core.step(assignment(1, stage(), term=8))
    assert core.named() == []
    core.step(assignment(1, stage(), term=9))
    assert [held.stage for held in core.named()] == [stage()]


def test_assignment_of_another_node_is_ignored_and_counted() -> None:
    core = make()
    assert core.step(AssignmentReceived(Assignment(node="x", revision=1))) == []
    assert core.foreign == 1


def test_what_stays_named_stays_as_it_is() -> None:
    core = make()
    for event in READY:
        core.step(event)
    actions = core.step(assignment(2, stage(), stage(1, generation=2)))
    assert without_reports(actions) == [FetchBlobs(2, stage(1, generation=2))]
    assert core.lives[1].phase is Phase.READY


def test_same_place_with_another_graph_is_another_stage() -> None:
    core = make()
    for event in READY:
        core.step(event)
    changed = stage(graph=OTHER)
    actions = without_reports(core.step(assignment(2, changed)))
    assert actions == [Unload(1, stage()), FetchBlobs(2, changed)]


def test_named_again_while_unloading_begins_a_new_life() -> None:
    core = make()
    for event in (*READY, NOBODY):
        core.step(event)
    assert without_reports(core.step(assignment(3, stage()))) == [FetchBlobs(2, stage())]
    assert without_reports(core.step(StageUnloaded(1))) == []
    assert list(core.lives) == [2]


def test_two_stages_at_one_place_are_one() -> None:
    core = make()
    actions = without_reports(core.step(assignment(1, stage(), stage(graph=OTHER))))
    assert actions == [FetchBlobs(1, stage(graph=OTHER))]


def test_new_orchestrator_and_new_connection_hear_a_report() -> None:
    core = make()
    assert core.step(OrchestratorBorn(1)) == []  # nothing to say yet
    assert core.step(BusConnected()) == []
    core.step(assignment(1, stage()))
    assert core.step(OrchestratorBorn(1, again=True)) == []
    assert states(core.step(OrchestratorBorn(2, again=True))) == [(0, "fetching", "")]
    # The same one, connected anew: what was reported meanwhile it has not heard.
    assert states(core.step(OrchestratorBorn(2))) == [(0, "fetching", "")]
    assert states(core.step(BusConnected())) == [(0, "fetching", "")]


def test_who_asks_hears_a_report_also_before_there_is_anything_to_hold() -> None:
    core = make()
    (answer,) = core.step(Asked())
    assert isinstance(answer, PublishReport)
    assert (answer.report.revision, answer.report.stages) == (0, [])
    core.step(assignment(1, stage()))
    assert states(core.step(Asked())) == [(0, "fetching", "")]


def test_prefetch_waits_for_idleness_and_yields() -> None:
    core = make()
    first = without_reports(core.step(assignment(1, stage(), prefetch=(OTHER,))))
    assert first == [FetchBlobs(1, stage())]
    assert without_reports(core.step(BlobsReady(1, 0))) == [Load(1, stage())]
    assert without_reports(core.step(StageLoaded(1, 0.1))) == [Prefetch(1, (OTHER,))]
    stop_and_go = without_reports(core.step(assignment(2, stage(), stage(1), prefetch=(OTHER,))))
    assert stop_and_go == [Prefetch(2, ()), FetchBlobs(2, stage(1))]
    assert core.step(PrefetchEnded(1)) == []
    core.step(BlobsReady(2, 0))
    assert Prefetch(2, (OTHER,)) in core.step(StageLoaded(2, 0.1))
    assert core.step(PrefetchEnded(2)) == []


@dataclass
class Shell:
    """Does what a shell would, in any order that a history asks for, and watches that it makes sense."""

    core: Desired = field(default_factory=make)
    fetching: dict[int, StageAssignment] = field(default_factory=dict)
    loading: dict[int, StageAssignment] = field(default_factory=dict)
    loaded: dict[int, StageAssignment] = field(default_factory=dict)
    unloading: dict[int, StageAssignment] = field(default_factory=dict)
    wanted: list[StageAssignment] = field(default_factory=list)
    revision: int = 0
    reported: list[tuple[int, str, str]] = field(default_factory=list)

    def step(self, event: Event) -> None:
        for action in self.core.step(event):
            match action:
                case FetchBlobs(life, assigned):
                    assert life not in self.fetching
                    self.fetching[life] = assigned
                case CancelFetch(life):
                    del self.fetching[life]
                case Load(life, assigned):
                    assert life not in self.loading
                    self.loading[life] = assigned
                case Unload(life, assigned):
                    assert self.loaded.pop(life) == assigned
                    self.unloading[life] = assigned
                case PublishReport(report):
                    self.reported = [(r.stage, r.state, r.reason) for r in report.stages]
                case Prefetch():
                    assert not action.blobs or not (self.fetching or self.loading)
        self.check()

    def check(self) -> None:
        lives = set(self.core.lives)
        # Everything under way is known, and nothing known is forgotten.
        assert {*self.fetching, *self.loading, *self.loaded, *self.unloading} <= lives
        places = [(s.pipeline, s.generation, s.stage) for s in (h.stage for h in self.core.named())]
        assert len(places) == len(set(places))
        assert sorted((h.stage for h in self.core.named()), key=str) == sorted(self.wanted, key=str)
        assert {row[0] for row in self.reported} == {s.stage for s in self.wanted}
        for held in self.core.lives.values():
            there = {
                Phase.FETCHING: self.fetching,
                Phase.LOADING: self.loading,
                Phase.ABANDONED: self.loading,
                Phase.READY: self.loaded,
                Phase.UNLOADING: self.unloading,
            }.get(held.phase)
            assert there is None or held.life in there


def _first(table: dict[int, StageAssignment], pick: int) -> int | None:
    return sorted(table)[pick % len(table)] if table else None


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("aAfFlLuosp"), st.integers(0, 15)), max_size=60))
# A prefetch began beside a load that had been abandoned, but cannot be stopped.
@example([("a", 13), ("f", 1), ("l", 0), ("f", 0), ("a", 12)])
def test_random_history(history: list[tuple[str, int]]) -> None:
    shell = Shell()
    for what, number in history:
        _happen(shell, what, number)
    # Whatever happened: once everything under way has ended, what is named is ready or failed.
    for _ in range(200):
        for what in "flu":
            _happen(shell, what, 0)
        if not (shell.fetching or shell.loading or shell.unloading):
            break
    assert {held.phase for held in shell.core.lives.values()} <= {Phase.READY, Phase.FAILED}
    assert {held.life for held in shell.core.lives.values() if held.phase is Phase.READY} == set(
        shell.loaded
    )


def _happen(shell: Shell, what: str, number: int) -> None:
    moves: dict[str, tuple[dict[int, StageAssignment], Callable[[int], Event]]] = {
        "f": (shell.fetching, lambda life: BlobsReady(life, number)),
        "F": (shell.fetching, lambda life: BlobsFailed(life, "no")),
        "l": (shell.loading, lambda life: StageLoaded(life, 0.1)),
        "L": (shell.loading, lambda life: StageLoadFailed(life, "no")),
        "u": (shell.unloading, StageUnloaded),
    }
    match what:
        case "a":
            shell.revision += 1
            shell.wanted = [
                stage(i, graph=OTHER if number & 8 else BLOB) for i in range(3) if number >> i & 1
            ]
            shell.step(
                AssignmentReceived(
                    Assignment(
                        node="n",
                        revision=shell.revision,
                        stages=list(shell.wanted),
                        prefetch=[OTHER] if number & 4 else [],
                    )
                )
            )
        case "A":
            if shell.revision:
                shell.step(assignment(max(0, shell.revision - number), stage(2)))
        case "o":
            shell.step(OrchestratorBorn(number))
        case "s":
            # What comes late for a life that is over changes nothing.
            before = {life: replace(held) for life, held in shell.core.lives.items()}
            for late in (BlobsReady(999, 1), StageLoaded(999, 1.0), StageUnloaded(999)):
                shell.step(late)
            assert shell.core.lives == before
        case "p":
            shell.step(PrefetchEnded(number))
        case _:
            table, make_event = moves[what]
            life = _first(table, number)
            if life is not None:
                assigned = table.pop(life)
                if what == "l":
                    shell.loaded[life] = assigned
                shell.step(make_event(life))


def test_what_was_forged_is_reported_once_per_kind_and_changes_nothing() -> None:
    core = make()
    for event in READY:
        core.step(event)
    before = {life: (held.stage, held.phase) for life, held in core.lives.items()}
    forged = MessageForged("assignment", "unsigned")
    (report,) = core.step(forged)
    assert isinstance(report, PublishReport)
    assert [row.state for row in report.report.stages] == ["ready"]
    assert core.step(forged) == core.step(forged) == []
    (report,) = core.step(MessageForged("orchestrator_state", "bad_signature"))
    assert isinstance(report, PublishReport)
    assert report.report.forged == [
        Forgery(topic="assignment", reason="unsigned", count=3),
        Forgery(topic="orchestrator_state", reason="bad_signature", count=1),
    ]
    assert {life: (held.stage, held.phase) for life, held in core.lives.items()} == before
    assert core.revision == 1
