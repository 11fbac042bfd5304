"""The dispatcher's thread on the fake wire: requests in, answers out, whatever comes between."""

from __future__ import annotations

import json
import logging

import msgpack
import numpy as np
import pytest

from orchestrator import dispatch_actions
from orchestrator.answers import ItemResult
from orchestrator.core import dispatch_events as core
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.micro_batch import MicroBatchLimits
from shared.bus import Message, Properties
from shared.codec import encode_msgpack
from shared.errors import BrokerError, BrokerUnreachableError, ErrorCode
from shared.messages.job import Companion, Failure, StageResult
from shared.tensor import WireTensor, to_wire
from tests.fakes.wire import FakeBroker, Mischief
from tests.shell.dispatcher_world import JPEG, LOGITS, pipeline, running, spec


def test_a_job_from_request_to_answer() -> None:
    with running() as world:
        world.ask(job="7")
        generation, activation = world.next_activation()
        assert generation == 1
        assert bytes(activation.body or b"") == JPEG
        assert activation.content_type == "image/jpeg"
        assert world.unacknowledged == 1, "not before its answer"
        world.result(generation, activation)
        world.until(lambda: world.answers)
        message = world.answers[0]
        assert message.topic == "test/result/c"
        assert message.properties.correlation_data == b"7"
        assert message.properties.content_type == "application/json"
        assert message.properties.user_value("job") == "7"
        said = world.next_answer()
        assert (said["status"], said["job"], said["top"][0]["label"]) == ("ok", "7", "dog")
        assert said["nodes"] == ["n"]
        assert "tensors" not in said
        world.until(lambda: world.unacknowledged == 0)
        answer = world.order.index(("publish", "test/result/c"))
        assert ("acknowledge", "test/model/m/infer") in world.order[answer:]
        assert ("acknowledge", "test/model/m/infer") not in world.order[:answer]


def test_the_topic_of_older_clients_says_where_to_answer() -> None:
    with running() as world:
        world.client.publish("test/model/m/infer/camera/42", JPEG)
        world.result(*world.next_activation())
        world.until(lambda: world.answers)
        assert world.answers[0].topic == "test/result/camera/42"
        assert world.answers[0].properties.correlation_data is None
        assert world.next_answer()["job"] == "42"


@pytest.mark.parametrize(
    ("reply", "why"),
    [(None, "no response topic"), ("test/event", "forbidden response topic"),
     ("test/result/+", "forbidden response topic"), ("other/result/c", "forbidden response topic")],
)  # fmt: skip
def test_a_job_that_cannot_be_answered_is_dropped_and_told_about(
    reply: str | None, why: str
) -> None:
    with running() as world:
        for _ in range(3):
            world.ask(reply=reply)  # type: ignore[arg-type]
        world.until(lambda: world.unacknowledged == 0 and any(r.news for r in world.reports()))
        news = [line for report in world.reports() for line in report.news]
        assert len(news) == 1, "one line, however many"
        assert "3 messages were dropped" in news[0]
        assert why in news[0]
        assert world.reports()[-1].dropped[why.replace(" ", "_")] == 3
        world.ask()
        world.result(*world.next_activation())
        assert world.next_answer()["status"] == "ok"


def test_a_retained_job_is_dropped() -> None:
    broker = FakeBroker()
    broker.publish("test/model/m/infer/c/1", JPEG, 1, retain=True)
    with running(broker) as world:
        world.until(lambda: world.dropped("retained_job") == 1)
        assert world.unacknowledged == 0
        assert not world.activations


@pytest.mark.parametrize(
    ("payload", "user", "code", "words"),
    [
        (b"", (), "bad_input", "base64"),
        (b"what is this?", (), "bad_input", "none of the forms"),
        (JPEG, (("deadline_ms", "soon"),), "bad_input", "deadline_ms"),
        (JPEG, (("deadline_ms", "-1"),), "bad_input", "deadline_ms"),
        (JPEG, (("job", "j" * 2000),), "bad_input", "too long"),
        (JPEG + b"." * 1000, (), "too_large", "at most 1000 bytes"),
        (msgpack.packb({"images": [JPEG] * 5}), (), "too_large", "batch"),
    ],
)
def test_what_cannot_be_run_is_answered_with_the_reason(
    payload: bytes, user: tuple[tuple[str, str], ...], code: str, words: str
) -> None:
    settings = DispatchSettings(max_item_bytes=1000, max_queued_items=4)
    with running(settings=settings) as world:
        world.ask(payload, user=user)
        got, error = world.next_error()
        assert got == code
        assert words in json.dumps(error)
        world.until(lambda: world.unacknowledged == 0)


def test_each_item_of_a_batch_has_the_limit_of_an_item() -> None:
    # Numbers as text take less room than as an array: the message is below the limit.
    numbers = json.dumps({"dtype": "float64", "shape": [200], "data": [1] * 200}).encode()
    with running(settings=DispatchSettings(max_item_bytes=1000)) as world:
        assert len(numbers) < 1000
        world.ask(numbers)
        code, error = world.next_error()
        assert (code, error["got"]) == ("too_large", "1600 bytes")
        world.ask(msgpack.packb({"images": [JPEG, JPEG + b"." * 1000]}), job="2")
        assert world.next_error()[0] == "too_large"


def test_an_unknown_model_is_named_with_those_that_are_served() -> None:
    with running() as world:
        world.client.publish("test/model/other/infer/c/1", b"anything, it is not even looked at")
        code, error = world.next_error()
        assert (code, error["expected"], error["got"]) == ("unknown_model", "'m'", "'other'")
        world.thread.tell(core.ModelStopped(0.0, "m"))
        world.until(lambda: not world.thread._commands)
        world.ask()
        assert world.next_error()[0] == "unknown_model"


def test_the_level_below_result_says_whose_share_a_job_takes() -> None:
    """Whatever topic it comes on: `flood` has most waiting, so it makes room for the others."""
    with running(settings=DispatchSettings(max_queued_items=4)) as world:
        window = 4
        for number in range(window + 4):
            world.ask(job=f"f{number}", reply=f"test/result/flood/{number}")
        world.until(lambda: len(world.activations) == window)
        world.client.publish("test/model/m/infer/camera/c0", JPEG)
        world.ask(job="b0", reply="test/result/b/0")
        for job in ("f7", "f6"):
            code, error = world.next_error()
            assert (code, error["retry_after_s"] > 0) == ("overloaded", True)
            assert f"test/result/flood/{job[1:]}" in {topic for _, topic in world.order}
        world.client.publish("test/model/m/infer/flood/f8", JPEG)
        assert world.next_error()[0] == "overloaded"
        for _ in range(window + 4):
            world.result(*world.next_activation())
        world.until(lambda: len(world.answers) == window + 4)
        assert len({message.topic for message in world.answers}) == window + 4


def test_priorities_come_from_the_user_property() -> None:
    with running() as world:
        window = 4
        for number in range(window):
            world.ask(job=f"first{number}")
        world.ask(job="low", user=[("priority", "0")])
        world.ask(job="usual")
        world.ask(job="high", user=[("priority", "9")])
        world.until(lambda: len(world.activations) == window)
        order: list[str] = []
        while len(order) < window + 3:
            world.result(*world.next_activation())
            order.append(world.next_answer()["job"])
        assert order[window:] == ["high", "usual", "low"]


@pytest.mark.parametrize("given", ["", "10", "-1", "high", "5.0", " 5", "٣"])
def test_a_priority_that_is_none_is_refused(given: str) -> None:
    with running() as world:
        world.ask(user=[("priority", given)])
        code, error = world.next_error()
        assert code == "bad_input"
        assert error["expected"] == "a whole number from 0 to 9; higher goes first"
        assert error["got"] == repr(given)


def test_of_a_camera_only_the_newest_frame_waits() -> None:
    with running() as world:
        window = 4
        for number in range(window + 3):
            world.ask(job=f"frame{number}", user=[("policy", "latest")])
        for number in range(window, window + 2):
            world.until(lambda: world.answers)
            said = world.next_answer()
            assert (said["job"], said["error"]["code"]) == (f"frame{number}", "superseded")
        for _ in range(window + 1):
            world.result(*world.next_activation())
        jobs = [world.next_answer()["job"] for _ in range(window + 1)]
        assert jobs == [*(f"frame{number}" for number in range(window)), f"frame{window + 2}"]


def test_a_policy_that_is_none_is_refused() -> None:
    with running() as world:
        world.ask(user=[("policy", "newest")])
        code, error = world.next_error()
        assert (code, error["expected"]) == ("bad_input", "lossless or latest")


def test_a_deadline_ends_a_job() -> None:
    with running(serve=False) as world:
        world.thread.tell(spec())
        world.ask(user=(("deadline_ms", "30"),))
        code, error = world.next_error()
        assert code == "deadline"
        assert "0.030 s" in error["expected"]


def test_a_messages_expiry_is_its_deadline() -> None:
    with running(serve=False) as world:
        world.thread.tell(spec())
        world.ask(expiry_s=1)
        code, error = world.next_error()
        assert (code, error["expected"]) == ("deadline", "within 1.000 s")


@pytest.mark.parametrize(("deadline_ms", "expiry_s"), [("60000", 1), ("30", 60)])
def test_the_earlier_of_deadline_and_expiry_holds(deadline_ms: str, expiry_s: int) -> None:
    """The broker takes what a job waited for us off its expiry only."""
    with running(serve=False) as world:
        world.thread.tell(spec())
        world.ask(user=(("deadline_ms", deadline_ms),), expiry_s=expiry_s)
        code, error = world.next_error()
        within_s = min(int(deadline_ms) / 1000, expiry_s)
        assert (code, error["expected"]) == ("deadline", f"within {within_s:.3f} s")


def test_a_client_of_its_own_topic_is_answered_there_whatever_it_names() -> None:
    """On a closed broker that is the only way in: nobody has somebody else's answers made."""
    with running() as world:
        properties = Properties(
            response_topic="test/result/victim/1", correlation_data=b"x", user=(("job", "theirs"),)
        )
        world.client.publish("test/model/m/infer/c/1", JPEG, properties=properties)
        world.result(*world.next_activation())
        world.until(lambda: world.answers)
        assert [message.topic for message in world.answers] == ["test/result/c/1"]
        assert json.loads(world.answers[0].payload)["job"] == "1"


@pytest.mark.parametrize("topic", ["test/model/m/infer", "test/model/m/infer/c/1"])
def test_the_broker_need_not_keep_an_answer_for_ever(topic: str) -> None:
    with running() as world:
        properties = Properties(response_topic="test/result/c/1", correlation_data=b"1")
        world.client.publish(topic, JPEG, properties=properties)
        world.result(*world.next_activation())
        world.until(lambda: world.answers)
        assert world.answers[0].properties.expiry_s == 24 * 3600


def test_a_batch_is_answered_in_order_with_errors_in_place() -> None:
    with running() as world:
        world.ask(msgpack.packb({"images": [JPEG, b"text", JPEG]}))
        world.until(lambda: len(world.activations) == 3)
        for generation, activation in reversed(world.activations):
            bad = Failure(code=ErrorCode.BAD_INPUT, message="no image")
            world.result(generation, activation, failure=bad if activation.item == 1 else None)
        said = world.next_answer()
        assert [item["status"] for item in said["results"]] == ["ok", "error", "ok"]


def test_a_micro_batch_is_one_message_and_its_result_is_each_items() -> None:
    """Each answer has its own part of what the last stage sent for all."""
    images = [JPEG + bytes([number]) for number in range(5)]
    with running(serve=False) as world:
        world.thread.tell(spec())
        world.thread.tell(pipeline(micro_batch=MicroBatchLimits(4, "so", 4, (0.01,))))
        world.ask(msgpack.packb({"images": images}))
        world.until(lambda: len(world.activations) == 2)
        (generation, first), (_, last) = world.activations
        assert [bytes(other.body or b"") for other in first.with_inputs] == images[1:4]
        world.result(generation, last)
        logits = np.zeros((4, 3), np.float32)
        logits[range(4), [0, 1, 2, 0]] = 9.0
        companions = [Companion(item=o.item, attempt=o.attempt) for o in first.with_inputs]
        made = StageResult(
            job=first.job,
            item=first.item,
            attempt=first.attempt,
            companions=companions,
            tensors={"y": to_wire(logits)},
        )
        world.publish_result(generation, bytes(encode_msgpack(made)))
        said = world.next_answer()
        tops = [item["top"][0]["label"] for item in said["results"]]
        assert tops == ["cat", "dog", "bird", "cat", "dog"]


def test_a_result_of_the_wrong_number_of_parts_is_tried_again_item_by_item() -> None:
    with running(serve=False) as world:
        world.thread.tell(spec())
        world.thread.tell(pipeline(micro_batch=MicroBatchLimits(4, "so", 4, (0.01,))))
        world.ask(msgpack.packb({"images": [JPEG] * 3}))
        generation, first = world.next_activation()
        companions = [Companion(item=o.item, attempt=o.attempt) for o in first.with_inputs]
        made = StageResult(
            job=first.job,
            item=first.item,
            attempt=first.attempt,
            companions=companions,
            tensors={"y": to_wire(np.zeros((2, 3), np.float32))},
        )
        world.publish_result(generation, bytes(encode_msgpack(made)))
        world.until(lambda: len(world.activations) == 3)
        assert all(not activation.with_inputs for _, activation in world.activations)
        world.serve_all()
        said = world.next_answer()
        assert [item["status"] for item in said["results"]] == ["ok"] * 3


def test_msgpack_with_the_raw_output() -> None:
    with running() as world:
        world.ask(user=(("accept", "application/msgpack"),))
        world.result(*world.next_activation())
        world.until(lambda: world.answers)
        assert world.answers[0].properties.content_type == "application/msgpack"
        said = msgpack.unpackb(world.answers[0].payload)
        raw = said["tensors"]["y"]
        np.testing.assert_array_equal(np.frombuffer(raw["data"], raw["dtype"]), LOGITS[0])


def test_a_repeat_gets_the_first_answer_again() -> None:
    with running() as world:
        world.ask()
        world.ask()
        world.result(*world.next_activation())
        first = world.next_answer()
        world.ask()
        assert world.next_answer()["trace"] == first["trace"]
        world.until(lambda: world.unacknowledged == 0)
        assert not world.activations
        assert not world.answers


def test_an_answer_without_tensors_is_remembered_without_them() -> None:
    """And whoever wants them with the repeat gets the first answer again, in its first form."""
    with running() as world:
        world.ask()
        world.result(*world.next_activation())
        first = world.next_answer()
        (kept,) = (each[0] for each in world.thread._core._requests.recent._entries.values())
        assert isinstance(kept.items[0].outcome, core.Output)
        value = kept.items[0].outcome.value
        assert isinstance(value, ItemResult)
        assert value.tensors is None
        world.ask(user=(("accept", "application/msgpack"),))
        world.until(lambda: world.answers)
        assert world.answers[0].properties.content_type == "application/json"
        assert world.next_answer() == first


def test_a_repeat_with_tensors_has_them_again() -> None:
    with running() as world:
        world.ask(user=(("accept", "application/msgpack"),))
        world.result(*world.next_activation())
        world.until(lambda: len(world.answers) == 1)
        world.ask(user=(("accept", "application/msgpack"),))
        world.until(lambda: len(world.answers) == 2)
        first, again = (msgpack.unpackb(answer.payload) for answer in world.answers)
        assert first == again
        assert first["tensors"]["y"]["data"] == LOGITS.tobytes()


def test_without_a_name_nothing_is_a_repeat() -> None:
    with running() as world:
        world.ask(job=None)
        world.ask(job=None)
        world.until(lambda: len(world.activations) == 2)
        world.serve_all()
        assert world.next_answer()["job"] != world.next_answer()["job"]


def test_what_waits_survives_a_reconnection_and_is_answered_once() -> None:
    with running() as world:
        world.ask()
        item = world.next_activation()
        world.broker.cut("dispatcher")
        world.broker.mend("dispatcher")
        world.result(*item)
        assert world.next_answer()["status"] == "ok"
        world.until(lambda: world.unacknowledged == 0)
        assert not world.answers


def test_an_answer_made_without_a_connection_goes_out_once() -> None:
    with running(serve=False) as world:
        world.thread.tell(spec())
        world.ask(user=(("deadline_ms", "100"),))
        world.until(lambda: world.unacknowledged == 1)
        world.until(lambda: world.thread._core.snapshot().live_requests == 1)
        world.broker.cut("dispatcher")
        world.until(lambda: world.thread._core.snapshot().live_requests == 0)
        assert not world.answers
        world.broker.mend("dispatcher")
        world.until(lambda: world.answers and world.unacknowledged == 0)
        # the fake wire gives a redelivery another packet id, so this one is known by its job
        assert {json.loads(answer.payload)["job"] for answer in world.answers} == {"1"}


def test_a_lost_session_does_not_lose_what_is_in_flight() -> None:
    with running() as world:
        world.ask()
        item = world.next_activation()
        world.broker.cut("dispatcher")
        del world.broker.sessions["dispatcher"]
        world.broker.mend("dispatcher")
        world.result(*item)
        assert world.next_answer()["status"] == "ok"


def test_a_successor_answers_what_was_left() -> None:
    with running() as world:
        for job in range(5):
            world.ask(job=str(job))
        world.until(lambda: len(world.activations) >= 4)
        world.restart()
        late = world.activations.pop(0)
        world.activations.clear()
        world.thread.tell(spec())
        world.thread.tell(pipeline())
        world.thread.start()
        world.result(*late)  # of a job that the successor knows by another id
        world.until(lambda: world.activations)
        seen: set[str] = set()
        while len(seen) < 5:
            world.serve_all()
            world.until(lambda: world.activations or world.answers)
            while world.answers:
                said = world.next_answer()
                assert said["status"] == "ok"
                assert said["job"] not in seen
                seen.add(said["job"])
        world.until(lambda: world.unacknowledged == 0)


def test_requests_that_wait_do_not_keep_results_out() -> None:
    settings = DispatchSettings(max_queued_items=500, min_retry_s=30.0)
    with running(settings=settings) as world:
        for job in range(300):
            world.ask(job=str(job))
        answered: set[str] = set()

        def progress() -> bool:
            world.serve_all()
            answered.update(json.loads(a.payload)["job"] for a in world.answers)
            return len(answered) == 300

        world.until(progress, 10.0)


@pytest.mark.parametrize(
    "payload",
    [b"", b"not msgpack", encode_msgpack({"job": 1}),
     encode_msgpack({"job": "x", "item": -1, "attempt": 1})],
)  # fmt: skip
def test_a_malformed_result_is_dropped(payload: bytes) -> None:
    with running() as world:
        world.publish_result(1, bytes(payload))
        world.until(lambda: world.dropped("bad_result") == 1)
        world.ask()
        world.result(*world.next_activation())
        assert world.next_answer()["status"] == "ok"
        world.until(lambda: world.unacknowledged == 0)


def test_a_result_for_nobody_changes_nothing() -> None:
    with running() as world:
        stray = StageResult(job="unknown", item=0, attempt=1)
        world.publish_result(9, bytes(encode_msgpack(stray)))
        world.until(lambda: world.thread._core.snapshot().counters.unknown_results == 1)


def test_an_output_that_cannot_be_is_tried_again() -> None:
    wrong = WireTensor(dtype="float32", shape=(1, 3), data=memoryview(b"1234"))
    with running() as world:
        world.ask()
        world.result(*world.next_activation(), tensors={"y": wrong})
        generation, second = world.next_activation()
        assert second.attempt == 2
        world.result(generation, second)
        assert world.next_answer()["status"] == "ok"


def test_labels_are_those_of_the_pipeline_that_ran_the_job() -> None:
    with running() as world:
        world.ask()
        first = world.next_activation()
        world.thread.tell(spec(labels=("x", "y", "z")))
        world.thread.tell(pipeline(2, labels=("x", "y", "z")))
        world.thread.tell(core.PipelineDraining(0.0, "m", "m-0", 1))
        world.ask(job="2")
        second = world.next_activation()
        assert second[0] == 2
        world.result(*second)
        assert world.next_answer()["top"][0]["label"] == "y"
        world.result(*first)
        assert world.next_answer()["top"][0]["label"] == "dog"
        world.until(lambda: any(isinstance(note, core.PipelineDrained) for note in world.notes))
        world.ask(job="1")
        assert world.next_answer()["top"][0]["label"] == "dog", "its first answer again"


def test_an_error_of_our_own_costs_one_job_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running() as world:
        step = world.thread._core.step

        def failing(event: core.Event) -> list[core.Action]:
            if isinstance(event, core.RequestArrived) and event.job == b"bad":
                raise RuntimeError("a bug")
            return step(event)

        monkeypatch.setattr(world.thread._core, "step", failing)
        with caplog.at_level(logging.CRITICAL):
            world.ask(job="bad")
            code, error = world.next_error()
        assert code == "internal"
        assert "a bug" in error["message"]
        world.until(lambda: world.unacknowledged == 0)
        world.ask(job="good")
        world.result(*world.next_activation())
        assert world.next_answer()["status"] == "ok"
        assert world.dropped("internal_error") == 1


def test_an_answer_that_cannot_be_written_is_answered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object) -> bytes:
        raise RuntimeError("a bug")

    with running() as world:
        monkeypatch.setattr(dispatch_actions, "write_answer", broken)
        world.ask()
        world.result(*world.next_activation())
        assert world.next_error()[0] == "internal"
        world.until(lambda: world.unacknowledged == 0)


def test_a_turn_that_fails_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as world:
        step, failed = world.thread._core.step, []

        def failing(event: core.Event) -> list[core.Action]:
            if isinstance(event, core.BusReconnected):
                failed.append(event)
                raise ZeroDivisionError
            return step(event)

        monkeypatch.setattr(world.thread._core, "step", failing)
        world.until(lambda: world.bus.sessions == 1 and world.thread._sessions == 1)
        world.broker.cut("dispatcher")
        world.broker.mend("dispatcher")
        world.until(lambda: failed)
        world.ask()
        world.result(*world.next_activation())
        assert world.next_answer()["status"] == "ok"


def test_figures_that_make_no_sense_do_not_end_the_thread() -> None:
    with running(serve=False) as world:
        world.thread.tell(spec())
        world.thread.tell(pipeline(1, throughput_per_s=float("nan")))
        world.thread.tell(pipeline(2))
        world.ask()
        assert world.next_activation()[0] == 2


def test_an_answer_that_finds_no_room_is_sent_when_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as world:
        full = True
        publish = world.bus.publish

        def publish_or_not(topic: str, *args: object, **more: object) -> None:
            if full and topic.startswith("test/result"):
                raise BrokerUnreachableError("too much waits")
            publish(topic, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(world.bus, "publish", publish_or_not)
        world.ask()
        world.result(*world.next_activation())
        world.until(lambda: world.thread._replies.waiting == 1)
        assert world.unacknowledged == 1, "it is not answered yet"
        full = False
        assert world.next_answer()["status"] == "ok"
        world.until(lambda: world.unacknowledged == 0)


@pytest.mark.parametrize("what", ["test/pipeline", "test/result"])
def test_what_the_broker_does_not_take_is_told(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as world:
        publish = world.bus.publish

        def refuse(topic: str, payload: bytes, *args: object, **more: object) -> None:
            if topic.startswith(what) and b'"error"' not in bytes(payload):
                raise BrokerError("too large", expected="at most 10 bytes", got="20 bytes")
            publish(topic, payload, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(world.bus, "publish", refuse)
        world.ask()
        if what == "test/result":
            world.result(*world.next_activation())
        code, error = world.next_error()
        assert (code, error["expected"]) == ("too_large", "at most 10 bytes")
        world.until(lambda: world.unacknowledged == 0)


def test_a_thread_that_was_never_started_can_be_stopped() -> None:
    with running() as world:
        world.restart()
        world.thread.stop()
        assert "dispatcher" in world.broker.sessions


@pytest.mark.parametrize("seed", [1, 2])
def test_mischief_on_the_wire_and_every_job_is_answered(seed: int) -> None:
    mischief = (
        Mischief(pattern="test/pipeline/#", lose_ratio=0.1, repeat_ratio=0.2, delay_s=(0.0, 0.2),
                 reorder=True),
        Mischief(pattern="test/model/#", repeat_ratio=0.2, delay_s=(0.0, 0.2), reorder=True),
    )  # fmt: skip
    settings = DispatchSettings(min_retry_s=0.05, max_attempts=12)
    with running(FakeBroker(seed=seed, mischief=mischief), settings) as world:
        for job in range(40):
            world.ask(job=str(job))
        said: list[Message] = []

        def progress() -> bool:
            world.broker.advance(0.02)
            world.serve_all()
            said.extend(world.answers)
            world.answers.clear()
            return len({json.loads(m.payload)["job"] for m in said}) == 40

        world.until(progress, 20.0)
        world.broker.advance(1.0)
        world.until(lambda: world.unacknowledged == 0)
        world.pump()
        said.extend(world.answers)
        answers = [json.loads(message.payload) for message in said]
        assert all(answer["status"] == "ok" for answer in answers)
        # A repeat of the request, made by the wire, may get the first answer again; never another.
        traces: dict[str, object] = {}
        for answer in answers:
            assert traces.setdefault(answer["job"], answer["trace"]) == answer["trace"]
