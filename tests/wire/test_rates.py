"""The meters of a link's bandwidth: seconds and payloads in, bytes/s out, against links that are computed."""

from __future__ import annotations

import socket

import pytest

from shared.bus.rates import FASTEST_BYTES_PER_S, DownMeter, UpMeter
from shared.bus.tcp_info import Sent, parse, sent

MB = 1e6


class Sender:
    """A connection over a link of a known rate: bursts of a size, some in each second."""

    def __init__(self, meter: UpMeter, *, round_trip_s: float = 0.0) -> None:
        self.meter = meter
        self._round_trip_s = round_trip_s
        self._acked, self._busy_s = 0, 0.0

    def second(self, bytes_per_s: float, *, size: int = 100_000, bursts: int = 10) -> float | None:
        self._acked += size * bursts
        self._busy_s += bursts * (size / bytes_per_s + self._round_trip_s)
        return self.meter.take(Sent(self._acked, self._busy_s, self._round_trip_s), bursts)


def last(told: list[float | None]) -> float | None:
    known = [rate for rate in told if rate is not None]
    return known[-1] if known else None


@pytest.mark.parametrize("round_trip_s", [0.0, 0.005])
@pytest.mark.parametrize("rate", [0.5, 1.0, 10.0])
def test_bytes_over_busy_time_less_a_round_trip_for_each_write(
    rate: float, round_trip_s: float
) -> None:
    sender = Sender(UpMeter(), round_trip_s=round_trip_s)
    told = last([sender.second(rate * MB) for _ in range(10)])
    assert told == pytest.approx(rate * MB)


def test_the_beginning_of_a_connection_is_not_counted_and_nothing_is_forgotten_by_a_new_one() -> (
    None
):
    meter = UpMeter()
    assert Sender(meter).second(1 * MB) is None
    sender = Sender(meter)
    meter.connected()
    assert sender.second(1 * MB) is None, "less than nothing was sent since the call before"
    assert sender.second(1 * MB) == pytest.approx(1 * MB)


def test_a_connection_that_is_never_busy_is_as_fast_as_can_be_told() -> None:
    sender = Sender(UpMeter())
    assert last([sender.second(float("inf")) for _ in range(10)]) == FASTEST_BYTES_PER_S


def test_small_messages_say_nothing_and_leave_no_trace() -> None:
    sender = Sender(UpMeter(), round_trip_s=0.01)
    sender.second(1 * MB)
    assert [sender.second(1 * MB, size=1000, bursts=50) for _ in range(20)] == [None] * 20
    assert sender.second(1 * MB) == pytest.approx(1 * MB)


def test_time_that_is_mostly_round_trips_says_nothing() -> None:
    sender = Sender(UpMeter(), round_trip_s=0.05)
    assert last([sender.second(10 * MB) for _ in range(10)]) is None


def test_one_second_in_which_the_broker_stood_still_is_passed_over_and_a_slower_link_is_not() -> (
    None
):
    sender = Sender(UpMeter())
    for _ in range(4):
        sender.second(5 * MB)
    assert sender.second(1 * MB) == pytest.approx(5 * MB)
    for _ in range(3):
        told = sender.second(1 * MB)
    assert told == pytest.approx(1 * MB)


def test_payloads_are_timed_from_a_few_on_and_the_better_ones_count() -> None:
    meter = DownMeter()
    told = []
    for index, rate in enumerate((10.0, 10.0, 2.0, 10.0, 1.0, 10.0)):
        meter.began(float(index), 100_000)
        told.append(meter.arrived(index + 100_000 / (rate * MB)))
    assert told[:2] == [None, None]
    assert told[2:] == [pytest.approx(10 * MB)] * 4
    for index in range(8):
        meter.began(float(index), 100_000)
        slower = meter.arrived(index + 0.1)
    assert slower == pytest.approx(1 * MB)


def test_a_payload_that_comes_in_no_time_is_as_fast_as_can_be_told() -> None:
    meter = DownMeter()
    for _ in range(3):
        meter.began(1.0, 100_000)
        told = meter.arrived(1.0)
    assert told == FASTEST_BYTES_PER_S


def test_what_this_kernel_says_of_a_connection() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        server.accept()[0] as theirs,
    ):
        ours.sendall(bytes(10_000))
        assert len(theirs.recv(10_000, socket.MSG_WAITALL)) == 10_000
        told = sent(ours)
    if told is not None:  # elsewhere than on Linux
        # The SYN counts as one.
        assert 10_000 <= told.acked_bytes <= 10_001
        assert told.busy_s >= 0.0
        assert 0.0 < told.min_round_trip_s < 1.0


def test_an_older_kernel_says_less() -> None:
    whole = bytearray(232)
    whole[120:128] = (12_345).to_bytes(8, "little")
    whole[148:152] = (250).to_bytes(4, "little")
    whole[168:176] = (3_000_000).to_bytes(8, "little")
    assert parse(bytes(whole)) == Sent(12_345, 3.0, 0.00025)
    assert parse(bytes(whole[:176])) == Sent(12_345, 3.0, 0.00025)
    for length in (0, 104, 168, 175):
        assert parse(bytes(whole[:length])) is None
