"""Who may feed a pipeline: its MAC, and the keys that the orchestrator derives."""

from __future__ import annotations

import hashlib
import hmac
import tracemalloc
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import Message, Properties
from shared.pipeline_mac import PipelineKeys, PipelineMac

KEYS = PipelineKeys(b"s" * 32, "amp4ec/v1")
MAC = KEYS.mac("m-0", 3)
TOPIC = "amp4ec/v1/pipeline/m-0/3/1"


def sealed(payload: bytes | bytearray, mac: PipelineMac = MAC, topic: str = TOPIC) -> Message:
    return Message(topic, payload, properties=mac.seal(topic, payload))


@given(payload=st.binary(max_size=300), flipped=st.integers(min_value=0))
def test_it_holds_for_this_message_alone(payload: bytes, flipped: int) -> None:
    good = sealed(payload)
    assert MAC.holds(good)
    assert MAC.holds(replace(good, payload=bytearray(payload)))
    assert not MAC.holds(replace(good, topic="amp4ec/v1/pipeline/m-0/3/2"))
    assert not MAC.holds(replace(good, payload=payload + b"\0"))
    ((name, value),) = good.properties.user
    raw = bytearray.fromhex(value)
    raw[flipped % len(raw)] ^= 1 << flipped % 8
    bad = Properties(user=((name, raw.hex()),))
    assert not MAC.holds(replace(good, properties=bad))
    if payload:
        changed = bytearray(payload)
        changed[flipped % len(payload)] ^= 1
        assert not MAC.holds(replace(good, payload=changed))


def test_as_written_down_in_the_protocol() -> None:
    """The same figures from the primitives, so that another implementation can speak with ours."""
    ((_, value),) = sealed(b"payload").properties.user
    nonce, tag = bytes.fromhex(value)[:16], bytes.fromhex(value)[16:]
    once = hashlib.blake2b(nonce + TOPIC.encode(), key=KEYS.key("m-0", 3), digest_size=32)
    assert hmac.compare_digest(tag, Poly1305.generate_tag(once.digest(), b"payload"))


@pytest.mark.parametrize("value", [None, "", "00", "zz" * 32, "0" * 63, "0" * 64, "0" * 66])
def test_a_mac_that_is_none(value: str | None) -> None:
    user = () if value is None else (("mac", value),)
    assert not MAC.holds(Message(TOPIC, b"x", properties=Properties(user=user)))


def test_no_two_messages_share_a_nonce() -> None:
    values = {sealed(b"same").properties.user[0][1] for _ in range(1000)}
    assert len({value[:32] for value in values}) == 1000


def test_each_pipeline_and_generation_has_its_own_key_and_a_successor_the_same() -> None:
    places = [(pipeline, number) for pipeline in ("m-0", "m-1", "m-01") for number in (1, 11, 101)]
    keys = [KEYS.key(*place) for place in places]
    assert len(set(keys)) == len(places)
    assert {len(key) for key in keys} == {32}
    assert [PipelineKeys(b"s" * 32, "amp4ec/v1").key(*place) for place in places] == keys
    for other in (PipelineKeys(b"t" * 32, "amp4ec/v1"), PipelineKeys(b"s" * 32, "other")):
        assert not {other.key(*place) for place in places} & set(keys)
    assert not KEYS.mac("m-0", 4).holds(sealed(b"x"))
    assert PipelineMac(KEYS.key("m-0", 3)).holds(sealed(b"x"))


def test_many_pipelines_do_not_fill_the_memory() -> None:
    keys = PipelineKeys(b"s" * 32, "r")
    good = sealed(b"x", keys.mac("m-0", 1))
    for number in range(2000):
        keys.mac("invented", number)
    assert len(keys._macs) <= 256
    assert keys.mac("m-0", 1).holds(good)


def test_a_payload_is_read_where_it_lies() -> None:
    payload = bytearray(1 << 20)
    tracemalloc.start()
    try:
        for given in (payload, memoryview(payload)):
            MAC.seal(TOPIC, given)
        MAC.holds(sealed(payload))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
