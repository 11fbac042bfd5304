"""The process between two hops of the `tls` benchmark: a bare data bus that passes on what comes."""

from __future__ import annotations

import sys
import threading

from deploy.peer import be_ready, wait_for_end
from shared.bus import BrokerUrl, MqttDataBus
from shared.topics import Topics

_topics = Topics()
THERE = _topics.topic("activation", pipeline="bench", generation=1, stage=0)
BACK = _topics.topic("activation", pipeline="bench", generation=1, stage=1)
"""Topics that an agent may write and read on a closed broker, too."""


def main() -> None:
    """`python -m tests.benchmarks.tls_relay BROKER`."""
    bus = MqttDataBus(BrokerUrl.parse(sys.argv[1]), "bench-relay")
    assert bus.connect(10.0), "no broker"
    bus.subscribe(THERE)
    # The broker answers in order: when this is acknowledged, the subscription stands.
    bus.publish(BACK, b"")
    bus.flush(10.0)
    ended = threading.Event()

    def wait() -> None:
        wait_for_end()
        ended.set()
        bus.wake()

    be_ready()
    threading.Thread(target=wait, daemon=True).start()
    while not ended.is_set():
        bus.poll(1.0)
        while (message := bus.receive()) is not None:
            bus.publish(BACK, message.payload)
    bus.close()


if __name__ == "__main__":
    main()
