"""Bad input end to end: a clear error to the one who sent it, and the next job is answered."""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from deploy.local import LocalCluster
from shared.codec import encode_msgpack
from shared.errors import ErrorCode, JobError
from shared.messages.job import TensorInput
from shared.tensor import Array, to_wire
from tests.cluster.conftest import JPEG, MODEL, ROOT, RawClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
MSGPACK = "application/msgpack"


def msgpack(array: Array) -> bytes:
    wire = to_wire(array)
    return bytes(encode_msgpack(TensorInput(dtype=wire.dtype, shape=wire.shape, data=wire.data)))


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def good(**changes: Any) -> Array:
    return np.zeros(changes.get("shape", (1, 3, 224, 224)), changes.get("dtype", np.float32))


def with_nan() -> Array:
    array = good()
    array[0, 0, 0, 0] = np.nan
    return array


CASES: dict[str, tuple[bytes, str | None, str]] = {
    "truncated JPEG": (JPEG[: len(JPEG) // 2], None, "bad_input"),
    "text file": (b"dear model, what is this?", None, "bad_input"),
    "text that claims to be a JPEG": (b"dear model", "image/jpeg", "bad_input"),
    "empty": (b"", None, "bad_input"),
    "wrong shape": (msgpack(good(shape=(1, 3, 10, 10))), MSGPACK, "bad_input"),
    "wrong dtype": (msgpack(good(dtype=np.float64)), MSGPACK, "bad_input"),
    "NaN": (msgpack(with_nan()), MSGPACK, "bad_input"),
    "npy of a wrong shape": (npy(good(shape=(3,))), None, "bad_input"),
    "npy of objects": (npy(np.array([{}], dtype=object)), None, "bad_input"),
    "broken msgpack": (msgpack(good())[:1000], MSGPACK, "bad_input"),
    "msgpack of something else": (bytes(encode_msgpack({"a": 1})), MSGPACK, "bad_input"),
    "JSON of something else": (b'{"question": 42}', "application/json", "bad_input"),
    "60 MB": (bytes(60_000_000), "image/jpeg", "too_large"),
}


@pytest.mark.parametrize("case", CASES)
async def test_error_says_what_was_expected(
    cluster: LocalCluster, raw: RawClient, case: str
) -> None:
    payload, content_type, code = CASES[case]
    answer = await asyncio.to_thread(raw.ask, payload, content_type=content_type)
    assert answer["status"] == "error", answer
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]
    assert answer["error"]["expected"]
    assert answer["error"]["got"]
    assert (await asyncio.to_thread(raw.ask, JPEG))["status"] == "ok"


async def test_unknown_model(cluster: LocalCluster, raw: RawClient) -> None:
    answer = await asyncio.to_thread(raw.ask, JPEG, model="nobody")
    assert answer["error"]["code"] == "unknown_model"
    assert (await asyncio.to_thread(raw.ask, JPEG))["status"] == "ok"


async def test_our_client_raises(cluster: LocalCluster) -> None:
    async with cluster.client() as client:
        with pytest.raises(JobError) as raised:
            await client.infer(MODEL, b"no photograph")
        assert raised.value.code == ErrorCode.BAD_INPUT
        with pytest.raises(JobError) as raised:
            await client.infer(MODEL, bytes(60_000_000))
        assert raised.value.code == ErrorCode.TOO_LARGE
        results = await client.infer_batch(MODEL, [JPEG, b"no photograph", JPEG])
        assert [isinstance(result, JobError) for result in results] == [False, True, False]


@pytest.mark.parametrize(
    "topic", [f"{ROOT}/node/agent-1/assignment", "elsewhere/answers", f"{ROOT}/result/"]
)
async def test_forbidden_response_topic(cluster: LocalCluster, raw: RawClient, topic: str) -> None:
    before = await cluster.wait_for_model(MODEL)
    raw.send(JPEG, response_topic=topic)
    assert (await asyncio.to_thread(raw.ask, JPEG))["status"] == "ok"
    # Nothing was written there: an assignment would have unloaded the stages.
    assert (await cluster.wait_for_model(MODEL)).generation == before.generation


async def test_raw_tensors_on_request(cluster: LocalCluster) -> None:
    async with cluster.client() as client:
        array = np.linspace(-1, 1, 3 * 224 * 224, dtype=np.float32).reshape(1, 3, 224, 224)
        result = await client.infer(MODEL, array, tensors=True)
        assert result.tensors is not None
        (logits,) = result.tensors.values()
        assert logits.shape == (1, 1000)
        best = int(logits.argmax())
        assert result.top[0].index == best
        assert result.random_weights


@pytest.mark.skipif(shutil.which("mosquitto_rr") is None, reason="no mosquitto_rr")
async def test_stock_tools(cluster: LocalCluster) -> None:
    """mosquitto_rr prints the answer; mosquitto_sub of the states reads as lines of JSON."""
    port = str(cluster.broker.port)
    shell = (
        f"mosquitto_rr -p {port} -t {ROOT}/model/{MODEL}/infer -e {ROOT}/result/me -W 30"
        " -m \"$(base64 | tr -d '\\n')\""
    )
    out = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", shell], input=JPEG, capture_output=True, check=True
    )
    assert b'"status":"ok"' in out.stdout
    assert b'"trace":[{' in out.stdout
    lines = await asyncio.to_thread(
        subprocess.run,
        ["mosquitto_sub", "-v", "-p", port, "-t", f"{ROOT}/+/+/state", "-W", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f'{ROOT}/model/{MODEL}/state {{"' in lines.stdout
    assert lines.stdout.count('"state":"online"') >= 3
