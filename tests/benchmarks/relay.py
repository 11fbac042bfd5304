"""The process that the messaging benchmark measures: a `stage` as an agent runs it, or a `bare` bus.

`sealed` is a stage of a closed cluster: it checks a MAC of what it takes, and makes one of what it sends.
"""

from __future__ import annotations

import sys
import threading
from functools import partial

from deploy.peer import be_ready, wait_for_end
from edge_agent.stage import Stage
from edge_agent.stage_input import StageInputs
from edge_agent.stage_thread import MAX_ITEMS, Attached, Notice, StageThread
from shared.bus import BrokerUrl, MqttDataBus
from shared.graph import TensorSpec, Value
from shared.pipeline_mac import PipelineMac
from shared.tensor import Array
from shared.topics import Topics
from tests.benchmarks.payloads import CUTS, NAME, activation_array, encode_activation

INPUT, OUTPUT = "50 KB", "31 KB"
_topics = Topics("bench")
_TOPIC = partial(_topics.topic, "activation", generation=1)
MAC = PipelineMac(b"k" * 32)
FROM = {
    "stage": _TOPIC(pipeline="relay", stage=1),
    "sealed": _TOPIC(pipeline="sealed", stage=1),
    "bare": "bench/bare/in",
}
TO = {
    "stage": _TOPIC(pipeline="relay", stage=2),
    "sealed": _TOPIC(pipeline="sealed", stage=2),
    "bare": "bench/bare/out",
}


class NothingToRun:
    """A runtime's loaded stage that has its outputs ready."""

    def __init__(self, outputs: dict[str, Array]) -> None:
        self._outputs = outputs

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The outputs, whatever the inputs."""
        del inputs
        return self._outputs

    def unload(self) -> None:
        """Nothing is held."""


def _stage(kind: str) -> Stage:
    return Stage(
        life=1,
        node="relay",
        model="relay",
        pipeline="relay",
        generation=1,
        index=1,
        num_stages=3,
        topic=FROM[kind],
        next_topic=TO[kind],
        result_topic=_topics.topic("stage_result", pipeline="relay", generation=1),
        runner=NothingToRun({NAME: activation_array(OUTPUT)}),
        inputs=StageInputs((Value(NAME, TensorSpec("float32", CUTS[INPUT])),), None, first=False),
        mac=MAC if kind == "sealed" else None,
    )


def _run_stage(kind: str, url: BrokerUrl) -> None:
    attached = threading.Event()

    def notify(notice: Notice) -> None:
        if isinstance(notice, Attached):
            attached.set()

    connect = partial(
        MqttDataBus,
        url,
        f"relay-{kind}",
        manual_ack=True,
        receive_maximum=MAX_ITEMS,
        inbox_limit=MAX_ITEMS,
    )  # as an agent's
    thread = StageThread(connect, notify, name="stage")
    thread.start()
    thread.attach(_stage(kind))
    assert attached.wait(10.0), "not attached"
    be_ready()
    wait_for_end()
    thread.stop(0.0)
    thread.join(5.0)


def _run_bare(url: BrokerUrl) -> None:
    bus = MqttDataBus(url, "relay-bare")
    assert bus.connect(10.0), "no broker"
    bus.subscribe(FROM["bare"])
    # The broker answers in order: when this is acknowledged, the subscription stands.
    bus.publish("bench/settled", b"")
    bus.flush(10.0)
    payload = bytes(encode_activation(activation_array(OUTPUT)))
    ended = threading.Event()

    def wait() -> None:
        wait_for_end()
        ended.set()
        bus.wake()

    be_ready()
    threading.Thread(target=wait, daemon=True).start()
    while not ended.is_set():
        bus.poll(1.0)
        while bus.receive() is not None:
            bus.publish(TO["bare"], payload)
    bus.close()


def main() -> None:
    """`python -m tests.benchmarks.relay stage|sealed|bare BROKER-URL`."""
    kind, url = sys.argv[1], BrokerUrl.parse(sys.argv[2])
    if kind == "bare":
        _run_bare(url)
    else:
        _run_stage(kind, url)


if __name__ == "__main__":
    main()
