"""The dispatcher runs a rounded job again with nothing rounded, and says what the difference is."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core import rounding
from orchestrator.dispatch_notes import RoundingMeasured
from orchestrator.rounding_guard import difference
from shared.tensor import WireTensor, to_wire
from tests.shell.dispatcher_world import LOGITS, World, pipeline, running, spec


def tensors(values: np.ndarray) -> dict[str, WireTensor]:
    return {"y": to_wire(values)}


def measured(world: World) -> list[RoundingMeasured]:
    return [note for note in world.notes if isinstance(note, RoundingMeasured)]


def serve(world: World) -> None:
    world.thread.tell(spec())
    world.thread.tell(pipeline(max_error=0.1))


def sample(world: World, rounded: np.ndarray, exact: np.ndarray) -> None:
    """A job is answered from rounded tensors, and run again."""
    known = len(measured(world))
    world.ask(job=f"{known}")
    generation, first = world.next_activation()
    assert not first.exact
    world.result(generation, first, tensors=tensors(rounded))
    assert world.next_answer()["status"] == "ok", "the client does not wait for the second run"
    generation, second = world.next_activation()
    assert second.exact
    assert second.body == first.body
    assert second.job != first.job
    world.result(generation, second, tensors=tensors(exact))
    world.until(lambda: len(measured(world)) == known + 1)


def test_samples_are_compared_and_nobody_is_answered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "SAMPLE_S", 0.0)
    with running(serve=False) as world:
        serve(world)
        sample(world, LOGITS * 1.03, LOGITS)
        note = measured(world)[-1]
        assert (note.model, note.generation, note.max_error, note.hurts) == ("m", 1, 0.1, False)
        assert note.error.error_ratio == pytest.approx(0.03, rel=1e-5)
        assert note.error.agreement_ratio == 1.0
        for _ in range(rounding.LEAST):
            sample(world, LOGITS[:, ::-1].copy(), LOGITS)
        assert measured(world)[-1].hurts
        assert measured(world)[-1].error.samples == 1 + rounding.LEAST
        assert not world.answers


def test_one_in_a_while() -> None:
    with running(serve=False) as world:
        serve(world)
        sample(world, LOGITS, LOGITS)
        for job in "abc":
            world.ask(job=job)
            generation, activation = world.next_activation()
            assert not activation.exact
            world.result(generation, activation)
            assert world.next_answer()["job"] == job


def test_what_rounds_nothing_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "SAMPLE_S", 0.0)
    with running() as world:
        for job in "abc":
            world.ask(job=job)
            generation, activation = world.next_activation()
            assert not activation.exact
            world.result(generation, activation)
            assert world.next_answer()["job"] == job


@pytest.mark.parametrize(
    ("rounded", "exact", "error_ratio", "agrees"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], 0.0, True),
        ([1.0, 3.0, 4.0], [1.0, 2.0, 4.0], 0.25, True),
        ([1.0, 2.0, 1.0], [1.0, 2.0, 4.0], 0.75, False),
        ([0.0, 0.0], [0.0, 0.0], 0.0, True),
        ([0.0, 1.0], [0.0, 0.0], 1.0, False),
        ([np.nan, 1.0], [0.5, 1.0], np.inf, False),
        ([1.0], [1.0, 2.0], np.inf, False),
    ],
)
def test_differences(
    rounded: list[float], exact: list[float], error_ratio: float, agrees: bool
) -> None:
    one, other = (tensors(np.array(values, np.float32)) for values in (rounded, exact))
    found = difference(one, other)
    assert found[0] == pytest.approx(error_ratio)
    assert found[1] is agrees
