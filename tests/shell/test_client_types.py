"""What a type checker makes of a caller's code: mypy reads this, and refuses an ignore without need."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
from PIL import Image as Pillow

from amp4ec import (
    Amp4ecError,
    Client,
    ClusterStatus,
    ConfigurationError,
    JobError,
    JobTimeoutError,
    Label,
    Result,
    Streamed,
    SyncClient,
    TraceEntry,
)


async def frames() -> AsyncIterator[np.ndarray[Any, Any]]:
    yield np.zeros((1, 3, 2, 2), np.float32)


async def inputs(client: Client) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    for given in ("a.jpg", Path("a.jpg"), b"", bytearray(), image, Pillow.new("RGB", (1, 1))):
        assert_type(await client.infer("m", given), Result)
    await client.infer("m", {"ids": image}, timeout_s=1, tensors=True)
    await client.infer("m", 3)  # type: ignore[arg-type]
    await client.infer("m", [image])  # type: ignore[arg-type]
    await client.infer("m", image, 5)  # type: ignore[call-arg]
    await client.infer("m", image, timeout=5)  # type: ignore[call-arg]


async def results(client: Client) -> None:
    result = await client.infer("m", "a.jpg")
    assert_type(result.top, tuple[Label, ...])
    assert_type(result.best, Label | None)
    assert_type(result.trace, tuple[TraceEntry, ...])
    assert_type(result.tensors, Mapping[str, np.ndarray[tuple[Any, ...], np.dtype[Any]]] | None)
    assert_type((result.exact, result.cached, result.latency_s), tuple[bool, bool, float])
    result.latency_s = 3.0  # type: ignore[misc]
    assert_type(await client.infer_batch("m", ["a.jpg", b""]), list[Result | JobError])
    assert_type(await client.status(), ClusterStatus)


async def streams(client: Client) -> None:
    assert_type(client.stream("m", [Path("a")]), AsyncGenerator[Streamed[Path]])
    async for item in client.stream("m", frames()):
        assert_type(item.input, np.ndarray[Any, Any])
        assert_type(item.result, Result)
        assert_type(item.error, Amp4ecError | None)
        assert_type(item.outcome, Result | Amp4ecError)
    pairs = [("front door", b"...")]
    async for named in client.stream("m", pairs, image=lambda pair: pair[1]):
        assert_type(named.input, tuple[str, bytes])
    client.stream("m", pairs, image=lambda pair: len(pair[0]))  # type: ignore[arg-type,return-value]
    client.stream("m", 3)  # type: ignore[arg-type]


def synchronous(client: SyncClient) -> None:
    assert_type(client.infer("m", "a.jpg"), Result)
    assert_type(client.infer_batch("m", ["a.jpg"]), list[Result | JobError])
    assert_type(client.stream("m", ["a.jpg"]), Generator[Streamed[str]])
    assert_type(client.status(), ClusterStatus)


def test_errors_are_what_python_calls_them() -> None:
    assert issubclass(JobTimeoutError, TimeoutError)
    with pytest.raises(ConfigurationError):
        Client("http://nowhere")
    with pytest.raises(ConfigurationError):
        SyncClient("http://nowhere")
