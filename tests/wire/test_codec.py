"""The codec against an independent msgpack, and against everything that is not what it should be."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.codec import decode_json, decode_msgpack, encode_json, encode_msgpack, finite
from shared.errors import ProtocolError
from shared.messages.artifact import Piece, Want
from shared.messages.job import Activation, BatchInput, JsonTensorInput, StageResult, TensorsInput
from shared.messages.model import ModelState
from shared.messages.node import NodeState, Telemetry
from shared.messages.operation import ServeRequest
from shared.messages.stage import Assignment, Report
from shared.tensor import to_wire

FROM_THE_WIRE = [
    Activation, StageResult, TensorsInput, BatchInput, JsonTensorInput, Want, Piece, NodeState, Telemetry,
    Assignment, Report, ModelState, ServeRequest,
]  # fmt: skip


def activation(data: np.ndarray) -> Activation:
    return Activation(job="j1", item=0, attempt=1, tensors={"x": to_wire(data)})


def test_an_activation_reads_back_with_an_independent_msgpack() -> None:
    data = np.arange(6, dtype=np.float32).reshape(1, 6)
    plain = msgpack.unpackb(encode_msgpack(activation(data)))
    assert plain["v"] == 1
    assert plain["job"] == "j1"
    assert plain["tensors"]["x"]["dtype"] == "float32"
    assert plain["tensors"]["x"]["shape"] == [1, 6]
    assert plain["tensors"]["x"]["data"] == data.tobytes()


def test_what_an_independent_msgpack_wrote_is_read() -> None:
    tensor = {"dtype": "uint8", "shape": [2], "data": b"\x01\x02"}
    read = decode_msgpack(msgpack.packb({"tensors": {"x": tensor}}), TensorsInput)
    assert read.tensors["x"].shape == (2,)
    assert bytes(read.tensors["x"].data) == b"\x01\x02"


def test_the_bytes_of_an_activation_do_not_change_unnoticed() -> None:
    data = np.array([[1.0]], dtype=np.float32)
    golden = (
        "8da36a6f62a26a31a46974656d00a7617474656d707401a774656e736f727381a17884a56474797065a7"
        "666c6f61743332a573686170659201 01a464617461c4040000803fa66c61796f7574aa636f6e746967"
        "756f7573a67061636b656480ab776974685f696e7075747390aa636f6d70616e696f6e7390a56578616374c2"
        "a4626f6479c0ac636f6e74656e745f74797065a0a5747261"
        "636590a777617463686564c2a17601"
    ).replace(" ", "")
    assert bytes(encode_msgpack(activation(data))).hex() == golden


def test_the_bytes_of_a_report_do_not_change_unnoticed() -> None:
    report = Report(node="pi-1", incarnation=3, revision=7)
    expected = (
        b'{"text":"","node":"pi-1","incarnation":3,"revision":7,"term":0,"refused":0,"stages":[],'
        b'"forged":[],"v":1}'
    )
    assert encode_json(report) == expected


@pytest.mark.parametrize("type_", FROM_THE_WIRE)
@given(data=st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_protocol_error(type_: type, data: bytes) -> None:
    for decode in (decode_json, decode_msgpack):
        try:
            decode(data, type_)
        except ProtocolError as error:
            assert type_.__name__ in str(error)  # noqa: PT017 - decoding may succeed too


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(document=st.dictionaries(
    st.sampled_from(["job", "item", "attempt", "tensors", "body", "trace", "v", "digest", "node"]), anything
))  # fmt: skip
def test_well_formed_msgpack_of_the_wrong_shape_is_refused_or_typed(
    document: dict[str, object],
) -> None:
    try:
        read = decode_msgpack(msgpack.packb(document), Activation)
    except ProtocolError:
        return
    assert isinstance(read.job, str)
    assert read.item >= 0
    assert read.v == 1


def test_an_unknown_version_is_refused_and_an_unknown_field_is_not() -> None:
    good = {"node": "n", "incarnation": 1, "revision": 1, "later": "grown"}
    assert decode_json(json.dumps(good), Report).node == "n"
    with pytest.raises(ProtocolError, match=r"2 - at `\$\.v`"):
        decode_json(json.dumps(good | {"v": 2}), Report)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "x" * 65, ".x"])
def test_a_node_name_that_is_no_topic_level_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="node"):
        decode_json(json.dumps({"node": name, "incarnation": 1, "revision": 1}), Report)


def test_numbers_that_are_none_are_refused() -> None:
    document = {
        "node": "n", "incarnation": 1, "uptime_s": math.nan, "cpu_percent": 1.0, "memory_used_bytes": 1,
        "memory_limit_bytes": 1, "network_received_bytes": 0, "network_sent_bytes": 0,
        "round_trip_s": None, "queue": 0, "stability": 1.0,
    }  # fmt: skip
    with pytest.raises(ProtocolError):
        decode_json(json.dumps(document), Telemetry)
    with pytest.raises(ProtocolError, match="uptime_s"):
        decode_msgpack(msgpack.packb(document), Telemetry)


def test_the_error_names_the_field_and_what_was_expected() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_json(b'{"node":"n","incarnation":"one","revision":1}', Report)
    assert "$.incarnation" in str(caught.value)
    assert "int" in str(caught.value)
    assert caught.value.got is not None
    assert "45 bytes" in caught.value.got


def test_decoding_an_activation_copies_nothing() -> None:
    wire = bytes(encode_msgpack(activation(np.zeros((1, 96, 56, 56), np.float32))))
    tracemalloc.start()
    try:
        read = decode_msgpack(wire, Activation)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read.tensors["x"].data.nbytes == 96 * 56 * 56 * 4
    assert peak < 4096


def test_encoding_an_activation_allocates_its_size_once() -> None:
    message = activation(np.zeros((1, 96, 56, 56), np.float32))
    size = message.tensors["x"].data.nbytes
    tracemalloc.start()
    try:
        wire = encode_msgpack(message, size + 512)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decode_msgpack(wire, Activation) == message
    assert peak < 1.01 * size + 8192


def test_a_size_hint_that_is_too_small_or_too_large_changes_nothing() -> None:
    message = activation(np.ones((2, 3), np.float32))
    plain = encode_msgpack(message)
    assert encode_msgpack(message, 8) == plain
    assert encode_msgpack(message, 4096) == plain


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_json_is_utf_8_also_where_nobody_reads_it(view: Callable[[bytes], bytes]) -> None:
    text = telemetry(later="é")
    assert decode_json(view(text), Telemetry).node == "pi-1"
    with pytest.raises(ProtocolError):
        decode_json(view(text.replace(b"later", b"lat\xffr")), Telemetry)


def test_what_has_no_json_form_is_refused() -> None:
    @dataclass
    class Opaque:
        what: object

    with pytest.raises(ProtocolError, match="cannot be written"):
        encode_json(Opaque(object()))


def test_finite() -> None:
    assert finite(1.5) == 1.5
    assert finite(math.inf) is None
    assert finite(None) is None


def telemetry(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "node": "pi-1", "incarnation": 1, "uptime_s": 1.0, "cpu_percent": 1.0, "memory_used_bytes": 1,
        "memory_limit_bytes": 1, "network_received_bytes": 1, "network_sent_bytes": 1, "round_trip_s": None,
        "queue": 0, "stability": 1.0,
    }  # fmt: skip
    return json.dumps(fields | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "pi-1\n"},
        {"incarnation": 2**63},
        {"incarnation": 10**400},
        {"uptime_s": 1e300},
        {"cpu_percent": 1e300},
        {"up_bytes_per_s": 1e300},
    ],
)
def test_numbers_and_names_that_lead_to_trouble_later_are_refused(
    changes: dict[str, object],
) -> None:
    assert decode_json(telemetry(), Telemetry).node == "pi-1"
    with pytest.raises(ProtocolError):
        decode_json(telemetry(**changes), Telemetry)


def test_a_digest_is_one_line() -> None:
    want = {"digest": "0" * 64, "offset": 0, "length": 1, "reply": "me"}
    assert decode_msgpack(msgpack.packb(want), Want).digest == "0" * 64
    with pytest.raises(ProtocolError):
        decode_msgpack(msgpack.packb(want | {"digest": "0" * 64 + "\n"}), Want)


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e300])
def test_a_stage_time_is_finite(value: float) -> None:
    time = {"stage": 0, "node": "a", "queue_s": value, "compute_s": 0.0, "cpu_s": 0.0}
    message = {"job": "j", "item": 0, "attempt": 0, "trace": [time]}
    with pytest.raises(ProtocolError):
        decode_msgpack(msgpack.packb(message), StageResult)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff" + b"\xc4\x00" * 1000,
        b"\xdd\x00\x98\x96\x80" + b"\xc4\x00" * 10_000_000,
    ],
)
def test_what_is_too_many_is_refused_before_any_is_made(data: bytes) -> None:
    message = b"\x81\xa6images" + data
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="length <= 1024"):
        decode_msgpack(message, BatchInput)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100_000


@pytest.mark.parametrize("type_", [list, dict, JsonTensorInput, Telemetry, StageResult])
def test_nesting_has_an_end(type_: type) -> None:
    for data in (b"[" * 100_000, b'{"x":' * 100_000, b'{"data":' + b"[" * 100_000):
        with pytest.raises(ProtocolError):
            decode_json(data, type_)
    for data in (b"\x91" * 100_000, b"\x81\xa1x" * 100_000, b"\x81\xa1x" + b"\x91" * 100_000):
        with pytest.raises(ProtocolError):
            decode_msgpack(data, type_)
