"""Stories: what several remember put in one order, each thing told once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli.story import describe
from deploy.log_files import logs_in, logs_of, search
from deploy.log_lines import LogLine
from deploy.story import Memory, seconds, story_of_job, story_of_model, story_of_node
from shared.client import ClusterStatus
from shared.errors import ConfigurationError
from shared.logs import utc
from shared.messages.job import TraceEntry
from shared.messages.life import JobLife, JobStep
from shared.messages.operation import DeployedStage, Deployment, Happening, OrchestratorState

T = 1_795_300_000.0


def happening(at: float, text: str, **of: str) -> Happening:
    return Happening(event="e", text=text, at=utc(T + at, "milliseconds"), **of)  # type: ignore[arg-type]


def line(at: float, event: str, process: str = "agent", **facts: object) -> LogLine:
    return LogLine(utc(T + at), "info", "x.y", event, {"process": process, **facts})


def deployment(at: float, generation: int, *nodes: str) -> Deployment:
    return Deployment(
        at=utc(T + at),
        model="m",
        manifest="0" * 64,
        runtime="onnxruntime",
        level="O1",
        generation=generation,
        reason="r",
        outcome="active",
        detail="",
        took_s=0.5,
        waited_s=0.0,
        slice_s=0.0,
        fetched_bytes=0,
        stages=[
            DeployedStage(
                pipeline="m-0", stage=index, node=node, blocks=(index, index + 1), state="ready"
            )
            for index, node in enumerate(nodes)
        ],
    )


def life() -> JobLife:
    """A job that went to a > b, where b died, and then to a > c."""
    steps = [
        JobStep(at=utc(T + 1), what="accepted", text=""),
        JobStep(
            at=utc(T + 1.1), what="dispatched", text="", item=0, attempt=1, pipeline="m-0", generation=1
        ),
        JobStep(at=utc(T + 2.2), what="lost", text="its pipeline was lost: b died", node="b"),
        JobStep(
            at=utc(T + 3.1), what="dispatched", text="its pipeline was lost: b died", item=0, attempt=2,
            pipeline="m-0", generation=2,
        ),
        JobStep(
            at=utc(T + 4), what="answered", text="after 3000 ms", attempt=2, pipeline="m-0", generation=2
        ),
    ]  # fmt: skip
    trace = [
        TraceEntry(stage=0, node="a", queue_s=0.1, compute_s=0.01, transit_s=0.001),
        TraceEntry(stage=1, node="c", queue_s=0.0, compute_s=0.02, transit_s=0.002),
    ]
    return JobLife(
        job="j", request="r1", model="m", client="cam", items=1, steps=steps, trace=trace
    )


def test_a_job_whose_node_died() -> None:
    memory = Memory(
        events=[
            happening(0.5, "before it"),
            happening(2.1, "node b was lost (last will)", node="b"),
            happening(2.15, "another model's", model="n"),
            happening(2.2, "node z left", node="z"),
            happening(3.0, "m generation 2 is active", model="m"),
            happening(5.0, "after it", model="m"),
        ],
        deployments=[deployment(0, 1, "a", "b"), deployment(2.3, 2, "a", "c")],
        lives=[life()],
        lines=[
            line(1.2, "item computed", node="a", request="r1", stage=0),
            line(3.1, "a job runs again", "orchestrator", request="r1", job="j"),
            line(1.3, "item computed", node="a", request="r2", stage=0),
        ],
    )
    told = [entry.text for entry in story_of_job("j", memory)]
    second = "pipeline m-0 generation 2"
    assert told == [
        "job j accepted for m, from cam",
        "it is sent to a > b (pipeline m-0 generation 1)",
        "item computed  request=r1 stage=0",
        "node b was lost (last will)",
        "its pipeline was lost: b died",
        "m generation 2 is active",
        f"it is sent again (attempt 2) to a > c ({second}), since its pipeline was lost: b died",
        "answered after 3000 ms",
    ]
    lines = describe(story_of_job("j", memory))
    assert lines[-2].endswith("stage 0 on a: way 1.00 ms, queue 100 ms, compute 10.0 ms")


def test_what_a_client_calls_its_job_is_printed_as_it_is() -> None:
    hostile = replace(life(), job="\x1b[2J\n2026-11-21 all is well")
    lines = describe(story_of_job("j", Memory(lives=[hostile])))
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 1 + len(hostile.steps) + len(hostile.trace)


def test_of_a_job_that_nobody_remembers_the_logs_tell() -> None:
    lines = [
        line(3, "a job runs again", "orchestrator", request="r1", job="j", attempt=2),
        line(4, "a job ended with an error", "orchestrator", request="r1", job="j"),
    ]
    assert [e.text.split("  ")[0] for e in story_of_job("j", Memory(lines=lines))] == [
        "a job runs again",
        "a job ended with an error",
    ]
    assert len(story_of_job("r1", Memory(lines=lines))) == 2


def test_a_node_is_no_other_whose_name_is_longer() -> None:
    memory = Memory(
        events=[
            happening(1, "node pi-1 joined", node="pi-1"),
            happening(2, "node pi-10 joined", node="pi-10"),
            happening(3, "m generation 1: pi-1[0:2] > pi-10[2:4]", model="m"),
            happening(4, "m generation 2: pi-10[0:4] because it was asked for", model="m"),
        ],
        deployments=[deployment(3, 1, "pi-1", "pi-10"), deployment(4, 2, "pi-10")],
        lines=[
            line(5, "stage ready", node="pi-1", stage=0),
            line(6, "stage ready", node="pi-10", stage=1),
            # the orchestrator's log has its events as well, written a moment earlier
            line(0.9998, "node pi-1 joined", "orchestrator", node="pi-1", kind="e"),
        ],
    )
    told = story_of_node("pi-1", memory)
    assert [entry.via for entry in told] == ["event", "event", "deployment", "log"]
    assert told[-1].source == "pi-1"
    assert told[-1].text == "stage ready  stage=0"
    assert [detail.split(":")[0] for detail in told[2].details] == ["stage 0 [0, 1) on pi-1"]


def test_a_model_from_the_first_word_on() -> None:
    memory = Memory(
        events=[happening(1, "m is to be served", model="m"), happening(1, "other", model="n")],
        deployments=[deployment(2, 1, "a")],
        lines=[line(2.2, "stage ready", node="a", model="m")],
    )
    assert [entry.source for entry in story_of_model("m", memory)] == [
        "orchestrator", "orchestrator", "a",
    ]  # fmt: skip


@given(
    ahead_s=st.floats(-1e4, 1e4),
    times=st.lists(st.floats(0, 1000), min_size=1, max_size=20),
)
def test_a_clock_that_is_wrong_is_put_right(ahead_s: float, times: list[float]) -> None:
    """In the order in which things happened, whatever the clock of whoever wrote them down."""
    events = [happening(at, f"node a was {at}", node="a") for at in times]
    lines = [line(at + ahead_s + 0.25, f"after {at}", node="a") for at in times]
    told = story_of_node("a", Memory(events=events, lines=lines, clocks_s={"a": ahead_s}))
    at = [entry.at for entry in told]
    assert at == sorted(at)
    happened = {entry.text: entry.at for entry in told}
    for time in times:
        assert abs(happened[f"after {time}"] - happened[f"node a was {time}"] - 0.25) < 0.01


def test_a_time_that_is_none() -> None:
    for at in ("yesterday", "0001-01-01T00:00:00", "9999-12-31T23:59:59Z", ""):
        assert seconds(at) == 0.0
    assert abs(seconds(utc(T)) - T) < 1e-5


def write(path: Path, *events: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"time": utc(T), "level": "info", "logger": "a", "event": event, "node": "n"}
        for event in events
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_logs_that_are_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one.log", "first", "second")
    below = write(tmp_path / "pi" / "agent.log", "third")
    single = write(tmp_path / "agent.jsonl", "fourth")
    assert logs_in([tmp_path, single]) == sorted([one, below, single])
    assert [line.event for line in search([one], {"second"})] == ["second"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no logs there"):
        logs_in([tmp_path / "empty"])


def test_logs_of_processes_that_run_here(tmp_path: Path) -> None:
    """By where their standard error goes; what else lies there is read only where it is ours."""
    mine, ended = write(tmp_path / "o.log", "runs"), write(tmp_path / "dead.log", "ran")
    (tmp_path / "other.log").write_text("not ours\n")
    with mine.open("a") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=log
        )
    try:
        state = OrchestratorState(
            state="online", incarnation=1, host=socket.gethostname(), pid=child.pid
        )
        status = ClusterStatus(orchestrator=state, nodes=(), models=())
        assert logs_of(status) == [ended, mine]
    finally:
        child.communicate(b"\n")
    assert logs_of(status) == [], "it has ended"
    elsewhere = OrchestratorState(state="online", incarnation=1, host="elsewhere", pid=1)
    assert logs_of(ClusterStatus(orchestrator=elsewhere, nodes=(), models=())) == []
