"""Two models on the same nodes: a flood of one model leaves the other its share.

Nothing in the dispatcher is shared between models but its thread: each has its queue and bounds, and what is
on its way to the nodes is bounded by the windows of its pipelines. A node takes what comes in order of
arrival (`edge_agent.stage_thread`), so what a job meets there is at most the other model's window.
"""

from __future__ import annotations

from collections import deque

import pytest

from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_events import (
    Answer,
    Dispatch,
    Event,
    InputItem,
    ModelServed,
    Output,
    PipelineActivated,
    Reject,
    RequestArrived,
    ResultArrived,
)
from orchestrator.core.dispatch_settings import DispatchSettings
from tests.core.dispatch_checks import check

SERVICE_S = 0.1
"""Of an item of either model on the node that they share."""


class SharedNode:
    """The dispatcher with models `flooded` and `polite`, each a pipeline of one stage on one node."""

    def __init__(self, window: int) -> None:
        self.core = Dispatcher(DispatchSettings(max_queued_items=50))
        self.now = 0.0
        self.line: deque[Dispatch] = deque()
        self.refused: list[str] = []
        self.answered: dict[str, float] = {}
        for model in ("flooded", "polite"):
            self.do(ModelServed(0.0, model))
            self.do(
                PipelineActivated(
                    now=0.0,
                    model=model,
                    pipeline=model,
                    generation=1,
                    num_stages=1,
                    throughput_per_s=1 / SERVICE_S,
                    latency_s=SERVICE_S,
                    window=window,
                )
            )

    def do(self, event: Event) -> None:
        for action in self.core.step(event):
            match action:
                case Dispatch():
                    self.line.append(action)
                case Answer(failure=None):
                    self.answered[action.request_id] = action.latency_s
                case Reject():
                    self.refused.append(action.model)
                case _:
                    raise AssertionError(action)
        check(self.core)

    def ask(self, model: str, request_id: str) -> None:
        self.do(
            RequestArrived(
                now=self.now,
                request_id=request_id,
                model=model,
                reply_to="result/x",
                items=(InputItem("in", 1),),
                handle=None,
            )
        )

    def serve_one(self) -> str:
        """The node takes what came first; which model's it was."""
        sent = self.line.popleft()
        self.now += SERVICE_S
        self.do(
            ResultArrived(
                now=self.now,
                request_id=sent.request_id,
                item_index=0,
                attempt=sent.attempt,
                pipeline=sent.pipeline,
                generation=1,
                outcome=Output(None),
            )
        )
        return sent.model


@pytest.mark.parametrize("window", [1, 4, 8])
def test_a_job_waits_for_the_other_models_window_at_most(window: int) -> None:
    world = SharedNode(window)
    for number in range(100):
        world.ask("flooded", f"f{number}")
    for number in range(20):
        world.ask("polite", f"p{number}")
        while f"p{number}" not in world.answered:
            world.serve_one()
            world.ask("flooded", f"g{world.now}")
        assert world.answered[f"p{number}"] <= (window + 1) * SERVICE_S + 1e-9
    assert "flooded" in world.refused
    assert "polite" not in world.refused


def test_two_floods_share_the_node_evenly() -> None:
    world = SharedNode(window=4)
    for number in range(60):  # of one model before the other
        world.ask("flooded", f"f{number}")
    for number in range(60):
        world.ask("polite", f"p{number}")
    served = [world.serve_one() for _ in range(40)]
    assert abs(served.count("polite") - served.count("flooded")) <= 4
