"""Hop time of an activation, codec included, against a bare aiomqtt hop of as many bytes; allocations.

Two processes play ping-pong through one Mosquitto and half a round trip is a hop. Ours: an array is encoded,
sent by `MqttDataBus`, received and decoded to an array again, in either direction. Bare: aiomqtt sends the
same bytes back and forth and looks at nothing. Both at QoS 1, with TCP_NODELAY, in turn item by item.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import tracemalloc
from collections.abc import Callable

import aiomqtt

from broker.launcher import Broker
from deploy.peer import Peer
from shared.bus import BrokerUrl, MqttDataBus
from shared.codec import decode_msgpack
from shared.errors import BrokerUnreachableError
from shared.messages.job import Activation
from shared.tensor import Array, from_wire
from tests.benchmarks.bus_echo import PING, PONG, bare_client
from tests.benchmarks.context import Context
from tests.benchmarks.payloads import CUTS, NAME, activation_array, encode_activation
from tests.benchmarks.report import Bar, Row

_METHOD = "half a round trip between two processes, QoS 1, TCP_NODELAY, in turn item by item"
_ALLOCATIONS = "tracemalloc's peak during one call, over the tensor's bytes"
_RATIO = 1.3
_LONGEST_MS = 40.0
"""What delayed acknowledgements cost a hop when Nagle's algorithm is left on (FACTS.md)."""
_ANSWER_S = 10.0
_PARTS = 10


async def run(context: Context) -> list[Row]:
    """See the module."""
    rounds = context.choose(30, 600)
    rows: list[Row] = []
    async with Broker(directory=context.directory / "bus") as broker:
        url = BrokerUrl.parse(broker.url)
        async with (
            await Peer.start("tests.benchmarks.bus_echo", "data", broker.url),
            await Peer.start("tests.benchmarks.bus_echo", "bare", broker.url),
            bare_client(url, "bench-bare") as bare,
        ):
            await bare.subscribe(PONG.format("bare"), qos=1)
            data = MqttDataBus(url, "bench-data")
            try:
                if not data.connect(_ANSWER_S):
                    raise BrokerUnreachableError(f"no connection to {url}")
                data.subscribe(PONG.format("data"))
                for cut in CUTS:
                    context.say(f"bus: {rounds} round trips of {cut}")
                    rows += await _compare(data, bare, cut, rounds)
            finally:
                data.close()
    for cut in CUTS:
        rows += _allocations(cut)
    return rows


async def _compare(data: MqttDataBus, bare: aiomqtt.Client, cut: str, rounds: int) -> list[Row]:
    array = activation_array(cut)
    payload = bytes(encode_activation(array))
    ours_ms: list[float] = []
    bare_ms: list[float] = []
    for index in range(-max(3, rounds // 20), rounds):
        ours_s, bare_s = _data_hop(data, array), await _bare_hop(bare, payload)
        if index >= 0:  # before that: warming up
            ours_ms.append(ours_s * 1e3)
            bare_ms.append(bare_s * 1e3)
    ours = Row.of("bus", f"hop of {cut}, codec included", "ms", ours_ms, method=_METHOD)
    base = Row.of("bus", f"bare aiomqtt hop of {cut}", "ms", bare_ms, method=_METHOD)
    part = max(1, rounds // _PARTS)
    ratios = [
        statistics.median(ours_ms[at : at + part]) / statistics.median(bare_ms[at : at + part])
        for at in range(0, rounds, part)
    ]
    return [
        ours,
        base,
        Row.of(
            "bus", f"hop of {cut}: ours / bare", "x", ratios,
            method=f"quotient of the medians of each of {_PARTS} parts of the run",
            against=f"bare: {base.values.median:.3f} ms", bar=Bar(_RATIO),
        ),
        Row.of(
            "bus", f"hop of {cut}: longest", "ms", [ours.values.largest], method=_METHOD,
            against=f"bare: {base.values.largest:.2f} ms", bar=Bar(_LONGEST_MS),
        ),
    ]  # fmt: skip


def _data_hop(bus: MqttDataBus, array: Array) -> float:
    """Seconds. Blocks the event loop, where nothing else is to be done meanwhile."""
    began = time.perf_counter()
    bus.publish(PING.format("data"), encode_activation(array))
    deadline = began + _ANSWER_S
    while (message := bus.receive()) is None:
        bus.poll(_ANSWER_S)
        if time.perf_counter() > deadline:
            raise BrokerUnreachableError(f"no echo within {_ANSWER_S:g} s")
    from_wire(decode_msgpack(message.payload, Activation).tensors[NAME])
    hop_s = (time.perf_counter() - began) / 2
    bus.flush(1.0)  # the broker's acknowledgement is not to fall into the next measurement
    return hop_s


async def _bare_hop(client: aiomqtt.Client, payload: bytes) -> float:
    began = time.perf_counter()
    # Not awaited before the echo has come: the broker's acknowledgement is no part of a hop.
    sending = asyncio.ensure_future(client.publish(PING.format("bare"), payload, qos=1))
    await anext(client.messages)
    hop_s = (time.perf_counter() - began) / 2
    await sending
    return hop_s


def _allocations(cut: str) -> list[Row]:
    """The tensor's bytes are written once when encoding (into the message), never when decoding."""
    array = activation_array(cut)
    payload = bytes(encode_activation(array))
    tracemalloc.start()
    try:
        encode_peak = _peak(lambda: encode_activation(array))
        decode_peak = _peak(lambda: from_wire(decode_msgpack(payload, Activation).tensors[NAME]))
    finally:
        tracemalloc.stop()
    return [
        Row.of(
            "bus", f"{verb} {cut}: memory allocated", "x", [peak / array.nbytes],
            method=_ALLOCATIONS, against=f"{array.nbytes} bytes of tensor", bar=Bar(limit),
        )
        for verb, peak, limit in (("encode", encode_peak, 1.1), ("decode", decode_peak, 0.1))
    ]  # fmt: skip


def _peak(call: Callable[[], object]) -> int:
    """Bytes that `call` holds at its peak; a first call builds what every later one finds ready."""
    call()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    kept = call()
    _, peak = tracemalloc.get_traced_memory()
    del kept
    return peak - before
