"""What a dispatcher makes of the jobs that its predecessor had accepted, by what the broker still knows."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

from orchestrator.core import dispatch_events as core
from orchestrator.core.dispatch_settings import DispatchSettings
from shared.bus import Message
from tests.shell.dispatcher_world import World, pipeline, running


def answered(world: World, jobs: int) -> Counter[str]:
    """Serve until so many jobs have an answer; how often each has one."""
    seen: Counter[str] = Counter()
    while len(seen) < jobs:
        world.serve_all()
        world.until(lambda: world.activations or world.answers)
        while world.answers:
            said = world.next_answer()
            assert said["status"] == "ok"
            seen[said["job"]] += 1
    world.until(lambda: world.unacknowledged == 0)
    return seen


def forget_queue(world: World) -> list[Message]:
    """The broker loses what it held for the dispatcher, but not the session; returns what it held."""
    session = world.broker.sessions["dispatcher"]
    lost = [*session.unacknowledged.values(), *session.waiting]
    session.unacknowledged.clear()
    session.waiting.clear()
    return lost


def accepted(world: World, jobs: int) -> None:
    for job in range(jobs):
        world.ask(job=str(job))
    world.until(lambda: len(world.activations) >= min(jobs, 4))
    assert world.thread._store is not None
    world.until(lambda: world.thread._core.snapshot().live_requests == jobs)


def test_jobs_that_the_broker_lost_go_on(tmp_path: Path) -> None:
    with running(store=tmp_path / "jobs.sqlite3") as world:
        accepted(world, 5)
        world.thread.stop()
        assert len(forget_queue(world)) == 5
        world.activations.clear()
        world.restart(broker_lost=True)
        assert len(world.recovered.jobs) == 5
        world.serve_again()
        assert answered(world, 5) == dict.fromkeys("01234", 1)


def test_a_store_that_is_lost_while_it_runs_costs_no_job(tmp_path: Path) -> None:
    """The broker's queue has them: they are answered now, and by a successor that finds no file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with running(store=folder / "jobs.sqlite3") as world:
        accepted(world, 5)
        shutil.rmtree(folder)
        world.ask(job="5")
        world.until(lambda: world.thread._core.snapshot().live_requests == 6)
        world.thread.stop()
        world.activations.clear()
        world.restart()
        assert world.recovered.jobs == ()
        world.serve_again()
        assert answered(world, 6) == dict.fromkeys("012345", 1)


def test_jobs_of_a_session_that_is_gone_go_on(tmp_path: Path) -> None:
    with running(store=tmp_path / "jobs.sqlite3") as world:
        accepted(world, 3)
        world.thread.stop()
        del world.broker.sessions["dispatcher"]
        world.activations.clear()
        world.restart()
        world.serve_again()
        assert answered(world, 3) == dict.fromkeys("012", 1)


def test_a_broker_that_lost_nothing_knows_better(tmp_path: Path) -> None:
    """The predecessor died between an answer and the store's word of it: the job does not run again."""
    with running(store=tmp_path / "jobs.sqlite3") as world:
        accepted(world, 3)
        world.thread.stop()
        lost = forget_queue(world)  # as if all three had been answered and acknowledged
        assert len(lost) == 3
        world.activations.clear()
        world.restart(broker_lost=False)
        assert len(world.recovered.jobs) == 3
        world.serve_again()
        world.ask(job="new")
        assert answered(world, 1) == {"new": 1}


def test_what_the_broker_delivers_again_after_all_runs_once(tmp_path: Path) -> None:
    """Broker restored from an old save: some of the jobs it still has, with and without a name of the job."""
    with running(store=tmp_path / "jobs.sqlite3") as world:
        accepted(world, 4)
        world.ask(job=None, payload=b"\xff\xd8\xff without a name", reply="test/result/other")
        world.until(lambda: world.thread._core.snapshot().live_requests == 5)
        world.thread.stop()
        session = world.broker.sessions["dispatcher"]
        for packet_id in list(session.unacknowledged)[:2]:
            del session.unacknowledged[packet_id]
        world.activations.clear()
        world.restart(broker_lost=True)
        assert len(world.recovered.jobs) == 5
        world.serve_again()
        seen = answered(world, 5)
        assert len(seen) == 5
        assert set(seen.values()) == {1}


def test_who_asks_again_gets_the_predecessors_answer(tmp_path: Path) -> None:
    with running(store=tmp_path / "jobs.sqlite3") as world:
        world.ask(job="7")
        world.result(*world.next_activation())
        world.until(lambda: world.answers)
        first = world.answers.pop().payload
        world.until(lambda: world.unacknowledged == 0)
        world.restart()
        world.serve_again()
        world.ask(job="7")
        world.until(lambda: world.answers)
        assert world.answers.pop().payload == first
        assert not world.activations, "it did not run again"
        # A stranger's job of the same name is another job.
        world.ask(job="7", reply="test/result/another")
        world.result(*world.next_activation())
        assert world.next_answer()["status"] == "ok"


def test_an_answer_is_given_again_as_long_as_any_other(tmp_path: Path) -> None:
    settings = DispatchSettings(repeat_window_s=0.3)
    with running(settings=settings, store=tmp_path / "jobs.sqlite3") as world:
        world.ask(job="7")
        world.result(*world.next_activation())
        world.until(lambda: world.answers)
        world.until(lambda: world.unacknowledged == 0)
        world.answers.clear()
        world.restart()
        world.serve_again()
        world.until(lambda: 0 < world.thread._forget_answers_at <= time.monotonic())
        world.ask(job="7")
        world.result(*world.next_activation())
        assert world.next_answer()["status"] == "ok"


def test_a_job_that_nodes_die_of_is_set_aside_and_answered_so_for_ever(tmp_path: Path) -> None:
    """Also by the next dispatcher. The one beside it is answered."""
    path = tmp_path / "jobs.sqlite3"
    with running(store=path) as world:
        world.ask(job="bad")
        world.ask(job="good")
        world.until(lambda: len(world.activations) == 2)
        assert not any(activation.watched for _, activation in world.activations)
        world.activations.clear()
        world.thread.tell(pipeline(2))
        world.thread.tell(core.PipelineLost(time.monotonic(), "m", "m-0", 1, "n1"))
        world.until(lambda: len(world.activations) == 2)
        assert all(activation.watched for _, activation in world.activations)
        bad, good = world.activations
        world.activations.clear()
        world.computes(*bad, "n2")
        world.until(lambda: world.unacknowledged == 2)
        world.thread.tell(pipeline(3))
        world.thread.tell(core.PipelineLost(time.monotonic(), "m", "m-0", 2, "n2"))
        code, error = world.next_error()
        assert code == "poison"
        assert "n1" in error["got"]
        assert "n2" in error["got"]
        assert any(isinstance(note, core.Poisoned) for note in world.notes)
        again = world.next_activation()
        assert again[1].job == good[1].job
        world.result(*again)
        assert world.next_answer()["job"] == "good"
        world.ask(job="bad")
        assert world.next_error()[0] == "poison"
        store = world.thread._store
        assert store is not None
        world.until(lambda: store.num_set_aside == 1)
        world.restart()
        world.serve_again()
        world.ask(job="bad")
        assert world.next_error()[0] == "poison"
        assert not world.activations
