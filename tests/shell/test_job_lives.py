"""What the dispatcher remembers of jobs: each way that one can take, told in order."""

from __future__ import annotations

import itertools
import time
from datetime import datetime

import pytest

from orchestrator.answers import Context, Shown
from orchestrator.core import dispatch_events as core
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.job_lives import MOST_STEPS, JobLives
from shared.errors import ErrorCode
from shared.messages.job import Failure
from shared.messages.life import JobLife
from tests.shell.dispatcher_world import JPEG, World, pipeline, running


def life_of(world: World, job: str) -> JobLife:
    (life,) = world.thread.lives.find(job)
    return life


def whats(life: JobLife) -> list[str]:
    return [step.what for step in life.steps]


def test_a_job_that_goes_straight_through() -> None:
    with running() as world:
        world.ask(job="7")
        generation, activation = world.next_activation()
        assert whats(life_of(world, "7")) == ["accepted", "dispatched"]
        world.result(generation, activation)
        answer = world.next_answer()
        life = life_of(world, "7")
        assert whats(life) == ["accepted", "dispatched", "answered"]
        assert (life.job, life.request, life.model, life.client) == ("7", activation.job, "m", "c")
        times = [datetime.fromisoformat(step.at) for step in life.steps]
        assert times == sorted(times)
        sent = life.steps[1]
        assert (sent.item, sent.attempt, sent.pipeline, sent.generation) == (0, 1, "m-0", 1)
        told = [{name: getattr(entry, name) for name in answer["trace"][0]} for entry in life.trace]
        assert told == answer["trace"], "what the client was told"
        assert world.thread.lives.find(life.request) == [life]
        assert world.thread.lives.find("8") == []


def test_a_job_whose_node_dies(caplog: pytest.LogCaptureFixture) -> None:
    with running() as world, caplog.at_level("INFO", "orchestrator"):
        world.ask(job="7")
        world.next_activation()
        world.thread.tell(pipeline(generation=2))
        world.thread.tell(core.PipelineLost(time.monotonic(), "m", "m-0", 1, crashed="n"))
        generation, activation = world.next_activation()
        world.result(generation, activation)
        world.next_answer()
        life = life_of(world, "7")
        assert whats(life) == ["accepted", "dispatched", "lost", "dispatched", "answered"]
        assert life.steps[2].node == "n"
        assert [step.generation for step in life.steps[1:]] == [1, 1, 2, 2]
        assert life.steps[3].text == "its pipeline was lost: n died"
    (line,) = [text for text in caplog.messages if "runs again" in text]
    assert f"job=7 request={life.request}" in line
    assert "n died" in line


def test_a_job_that_a_stage_fails_until_it_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    with (
        running(settings=DispatchSettings(max_attempts=2)) as world,
        caplog.at_level("INFO", "orchestrator"),
    ):
        world.ask(job="7")
        failure = Failure(code=ErrorCode.INTERNAL, message="no memory", retryable=True)
        for _ in range(2):
            world.result(*world.next_activation(), failure=failure)
        assert world.next_answer()["status"] == "error"
        life = life_of(world, "7")
        assert whats(life) == [
            "accepted", "dispatched", "failed", "dispatched", "failed", "answered",
        ]  # fmt: skip
        assert "no memory" in life.steps[2].text
        assert "no memory" in life.steps[3].text, "why it was sent again"
        assert "with an error: internal" in life.steps[-1].text
        assert life.trace == []
    assert sum("ended with an error" in text for text in caplog.messages) == 1


def test_jobs_that_are_refused() -> None:
    with running() as world:
        world.ask(payload=b"{", job="bad")
        assert world.next_answer()["status"] == "error"
        (step,) = life_of(world, "bad").steps
        assert (step.what, step.text.split(":")[0]) == ("refused", "bad_input")
        world.client.publish("test/model/other/infer/camera/unknown", JPEG)
        assert world.next_answer()["status"] == "error"
        (step,) = life_of(world, "unknown").steps
        assert (step.what, step.text.split(":")[0]) == ("refused", "unknown_model")


def request(number: int, items: int = 1) -> core.RequestArrived:
    context = Context(str(number), None, msgpack=False, batch=items > 1, version_5=True)
    return core.RequestArrived(
        now=0.0,
        request_id=f"r{number}",
        model="m",
        reply_to="test/result/c",
        items=tuple(core.InputItem(None, 1) for _ in range(items)),
        handle=None,
        context=context,
    )


def sent(number: int, item: int = 0, attempt: int = 1) -> core.Dispatch:
    return core.Dispatch(
        request_id=f"r{number}",
        item_index=item,
        attempt=attempt,
        model="m",
        pipeline="m-0",
        generation=1,
        payload=None,
        size_bytes=1,
    )


def ended(number: int) -> core.Answer:
    item = core.EndedItem(
        outcome=core.Failure(code=ErrorCode.DEADLINE, message="late"),
        pipeline=None,
        generation=None,
        attempts=1,
        queue_s=0.0,
        flight_s=0.0,
        latency_s=1.0,
    )
    return core.Answer(
        request_id=f"r{number}",
        model="m",
        reply_to="test/result/c",
        job=None,
        context=None,
        items=(item, item),
        latency_s=1.0,
        handles=(),
    )


def test_bounds_hold_and_the_end_is_always_told(caplog: pytest.LogCaptureFixture) -> None:
    lives = JobLives(itertools.count(1.0, 0.001).__next__, most=3)
    with caplog.at_level("INFO", "orchestrator"):
        for number in range(200):
            lives.accepted(request(number, items=300))
            for item in range(300):
                lives.dispatched(sent(number, item))
            lives.answered(ended(number), lambda _: Shown(None, ""))
    assert [len(lives.find(str(number))) for number in (0, 196, 197, 199)] == [0, 0, 1, 1]
    (life,) = lives.find("r199")
    assert len(life.steps) == MOST_STEPS + 1
    assert life.left_out == 300 - MOST_STEPS + 1
    assert (life.steps[0].what, life.steps[-1].what) == ("accepted", "answered")
    assert len(caplog.messages) < 140, "a flood does not flood the log"
    assert "more_before=" in caplog.messages[-1]


def test_what_runs_on_is_not_lost_with_another_pipeline() -> None:
    lives = JobLives()
    lives.accepted(request(1))
    lives.dispatched(sent(1))
    lives.lost("m-0", 2, None)
    lives.lost("m-1", 1, None)
    (life,) = lives.find("1")
    assert whats(life) == ["accepted", "dispatched"]
    lives.dispatched(sent(9))  # a sample of our own, which nobody asked for
    assert lives.find("r9") == []
