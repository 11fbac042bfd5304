"""The result cache on the dispatcher's thread: what is equal, what an answer says of it, what is measured."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

from orchestrator.core.result_cache import CacheSettings
from orchestrator.figures import Measured, metrics
from orchestrator.input_key import input_key
from orchestrator.inputs import parse_input
from shared.codec import encode_msgpack
from shared.messages.job import BatchInput
from shared.tensor import to_wire
from tests.shell.dispatcher_world import JPEG, World, pipeline, running, spec

CACHE = CacheSettings(identity="package 1")


def serve(world: World, identity: str = "package 1", generation: int = 1) -> None:
    cache = replace(CACHE, identity=identity)
    world.thread.tell(replace(spec(), cache=cache))
    world.thread.tell(replace(pipeline(generation), identity=identity))


def test_the_second_answer_comes_from_the_cache_and_says_so() -> None:
    with running(serve=False) as world:
        serve(world)
        world.ask(job="1")
        world.result(*world.next_activation())
        first = world.next_answer()
        world.ask(job="2", reply="test/result/another")
        second = world.next_answer()
        assert (first["cached"], second["cached"]) == (False, True)
        assert (second["job"], second["status"]) == ("2", "ok")
        for field in ("top", "nodes", "pipeline", "generation", "weights", "exact"):
            assert second[field] == first[field], field
        assert second["trace"] == []
        assert not world.activations
        world.until(lambda: world.unacknowledged == 0)


def test_a_hit_has_its_tensors_where_they_are_asked_for() -> None:
    accept = (("accept", "application/msgpack"),)
    with running(serve=False) as world:
        serve(world)
        for job in ("json", "json again"):  # an answer whose tensors were let go
            world.ask(job=job)
            if job == "json":
                world.result(*world.next_activation())
            world.next_answer()
        said: list[dict[str, Any]] = []
        for job in ("raw", "raw again"):
            world.ask(job=job, user=accept)
            if job == "raw":
                world.result(*world.next_activation())
            world.until(lambda: world.answers)
            said.append(msgpack.unpackb(world.answers.pop(0).payload))
        assert [each["cached"] for each in said] == [False, True]
        assert said[0]["tensors"] == said[1]["tensors"]
        assert said[0]["tensors"]["y"]["shape"] == [1, 3]


def test_a_batch_is_answered_in_part_by_the_cache() -> None:
    other = JPEG + b" of something else"
    images = [memoryview(image) for image in (JPEG, other, other)]
    with running(serve=False) as world:
        serve(world)
        world.ask(job="1")
        world.result(*world.next_activation())
        world.next_answer()
        world.ask(bytes(encode_msgpack(BatchInput(images=images))), job="2")
        world.result(*world.next_activation())
        results = world.next_answer()["results"]
        assert [each["cached"] for each in results] == [True, False, True]
        assert not world.activations


def test_what_replaces_a_model_is_asked_anew() -> None:
    with running(serve=False) as world:
        serve(world)
        world.ask(job="1")
        world.result(*world.next_activation())
        world.next_answer()
        serve(world, "package 2", generation=2)
        world.ask(job="2")
        generation, activation = world.next_activation()
        world.result(generation, activation)
        assert world.next_answer()["cached"] is False


def test_metrics_tell_hits_from_what_was_run() -> None:
    with running(serve=False) as world:
        serve(world)
        world.ask(job="0")
        world.result(*world.next_activation())
        for job in "123":
            world.next_answer()
            world.ask(job=job)
        world.next_answer()
        world.until(
            lambda: sum(r.answered["m"].requests for r in world.reports() if r.answered) == 4,
            deadline_s=10.0,
        )
        reports = world.reports()
        told = metrics(reports[-1], 1, {}, {}, {}, sent_at_ms=0).models["m"].cache
        assert told is not None
        assert (told.hits, told.joined, told.misses, told.hit_ratio) == (3, 0, 1, 0.75)
        assert told.entries == 1
        # A plan is not measured by what it had no part in.
        assert sum(report.answered["m"].items for report in reports if report.answered) == 1
        measured = Measured()
        for at, report in enumerate(reports):
            measured.add(float(at), report)
        assert measured.figures("m", 0.0).throughput_per_s == pytest.approx(0.1)


def test_equal_inputs_have_equal_keys_and_others_not() -> None:
    def key(payload: bytes, content_type: str | None = None, *, raw: bool = False) -> bytes:
        (item,) = parse_input(payload, content_type, ("x",)).items
        return input_key("p", item, msgpack=raw).digest

    jpeg = JPEG + bytes(range(200))
    text = base64.b64encode(jpeg)
    assert key(jpeg) == key(jpeg, "image/jpeg") == key(text), "however it was wrapped"
    array = np.arange(12, dtype=np.float32)
    arrays = (array, array.reshape(3, 4), array.reshape(4, 3), array.view(np.int32), array * 2)
    tensors = [key(bytes(encode_msgpack({"tensors": {"x": to_wire(a)}}))) for a in arrays]
    assert len({key(jpeg), key(jpeg, raw=True), key(jpeg + b"."), *tensors}) == 3 + len(tensors)
    (item,) = parse_input(jpeg, None, ("x",)).items
    assert input_key("p", item, msgpack=False) != input_key("q", item, msgpack=False)
