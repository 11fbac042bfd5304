"""Client ids that two share in turn: who was thrown out does not come back before its fence lets it."""

from __future__ import annotations

from shared.bus import BrokerUrl, MqttControlBus, MqttDataBus
from tests.broker.conftest import poll_until, until


class Gate:
    """A fence that lets nobody back in before a test opens it.

    Mosquitto 2.0.11 closes the connection that is replaced without a reason, newer ones give it: that a bus
    asks has to be enough.
    """

    def __init__(self) -> None:
        self.open = False
        self.lost: list[float | None] = []

    def may_connect(self, lost_at: float | None) -> bool:
        self.lost.append(lost_at)
        return lost_at is None or self.open

    def taken_over(self) -> None:
        pass

    def refusals(self) -> int:
        return sum(lost_at is not None for lost_at in self.lost)


async def test_a_control_connection_that_is_thrown_out_asks_before_it_returns(
    url: BrokerUrl,
) -> None:
    gate = Gate()
    first = MqttControlBus(url, client_id="shared", fence=gate)
    second = MqttControlBus(url, client_id="shared")
    async with first:
        await until(lambda: first.connected)
        assert gate.lost == [None]
        async with second:
            await until(lambda: second.connected)
            await until(lambda: gate.refusals() >= 3)
            assert not first.connected
            assert second.connected
            assert second.reconnections == 0
        gate.open = True
        await until(lambda: first.connected)


def test_a_data_connection_that_is_thrown_out_asks_before_it_returns(url: BrokerUrl) -> None:
    gate = Gate()
    first = MqttDataBus(url, "shared", fence=gate)
    second = MqttDataBus(url, "shared")
    try:
        assert first.connect(5.0)
        assert second.connect(5.0)
        poll_until(first, lambda: gate.refusals() >= 3)
        assert not first.connected
        second.poll(0.05)
        assert second.connected
        second.close()
        gate.open = True
        poll_until(first, lambda: first.connected)
    finally:
        first.close()
        second.close()
