"""Decisions on micro-batches, told when they change."""

from __future__ import annotations

from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_events import ModelServed, PipelineActivated
from orchestrator.core.micro_batch import MicroBatchLimits
from orchestrator.decisions import MicroBatchNews, micro_batch_row


def activate(machine: Dispatcher, size: int | None, most: int = 8) -> None:
    machine.step(
        PipelineActivated(
            now=0.0,
            model="m",
            pipeline="m-0",
            generation=1,
            num_stages=1,
            throughput_per_s=10.0,
            latency_s=0.1,
            micro_batch=MicroBatchLimits(most, "as asked", size, (0.1,)),
        )
    )


def test_a_change_is_told_once() -> None:
    machine, news = Dispatcher(), MicroBatchNews()
    machine.step(ModelServed(0.0, "m"))
    activate(machine, None)
    assert news.tell(machine.snapshot()) == [], "one item a message is no news"
    activate(machine, 4)
    (told,) = news.tell(machine.snapshot())
    assert (told.event, told.model, told.generation, told.reason) == (
        "micro_batch",
        "m",
        1,
        "as asked",
    )
    assert told.text == "m-0: long batches go 4 items a message, before 1: as asked"
    assert news.tell(machine.snapshot()) == []
    activate(machine, 1)
    (back,) = news.tell(machine.snapshot())
    assert "1 item a message, before 4" in back.text


def test_what_is_shown_of_one_that_learned() -> None:
    machine = Dispatcher()
    machine.step(ModelServed(0.0, "m"))
    activate(machine, None)
    (load,) = machine.snapshot().models[0].pipelines
    row = micro_batch_row(load.micro_batch)
    assert (row.size, row.most, row.reason, row.item_s) == (1, 8, "nothing measured yet", {})
