"""A batch of 32 through three stages at 0.5, 0.3 and 0.2 CPU: micro-batches of 1, 2, 4, 8, 32, as measured.

Three models: MobileNetV2 (convolutions), the tiny one (stages that do next to nothing) and a small BERT
(matrix products with few rows), with both runtimes. One batch at a time, so that latency and rate say the
same. Sizes are asked for in turn (`--micro-batch N`), and before `auto` counts it has had the batches in
which it tries what there is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import psutil

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.photo import PHOTO
from orchestrator.models.source import InputShape
from shared.client import Client
from shared.errors import JobError
from shared.messages.model import MicroBatchRow
from shared.tensor import Array
from tests.benchmarks.clusters import MODEL, calibrated
from tests.benchmarks.context import Context
from tests.benchmarks.report import Row
from tests.benchmarks.small_bert import TOKENS, VOCABULARY
from tests.benchmarks.tiny_model import NAME, serve_tiny

BATCH = 32
_TRIES = 12
"""Batches that `auto` has before it counts: each size up to 8 five times, and larger ones where they pay."""
_METHOD = "client's clock, one batch of 32 after the other; 3 stages at 0.5/0.3/0.2 CPU"
_BERT = "tests.benchmarks.small_bert:bert"
_Inputs = Sequence[bytes | dict[str, Array]]


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows: list[Row] = []
    for runtime in context.choose(("onnxruntime",), ("onnxruntime", "torch")):
        for model in (MODEL, NAME, "bert"):
            # A cluster each: memory is what this model's batches take.
            async with calibrated(context, f"microbatch-{model}-{runtime}") as cluster:
                rows += await _Bench(context, cluster, model, runtime).rows()
    return rows


class _Bench:
    """One model with one runtime."""

    def __init__(self, context: Context, cluster: LocalCluster, model: str, runtime: str) -> None:
        self._context = context
        self._cluster = cluster
        self._model = model
        self._runtime = runtime
        self._inputs = _inputs(model)

    async def rows(self) -> list[Row]:
        """Rate and memory at each size, and what `auto` came to."""
        rows: list[Row] = []
        sizes: tuple[int | None, ...] = self._context.choose((1, 8, None), (1, 2, 4, 8, 32, None))
        for size in sizes:
            self._context.say(f"microbatch: {self._model}, {self._runtime}, {size or 'auto'}")
            await self._serve(size)
            async with self._cluster.client() as client:
                for _ in range(2 if size is not None else _TRIES):
                    await self._batch(client)
                seconds = [await self._batch(client) for _ in range(self._context.choose(3, 12))]
                chosen = await self._chosen(client)
            rows += self._rows(size, seconds, chosen)
        return rows

    def _rows(
        self, size: int | None, seconds: list[float], chosen: MicroBatchRow | None
    ) -> list[Row]:
        name = f"{self._model}, {self._runtime}, {'auto' if size is None else size}"
        why = "" if chosen is None else f"{chosen.size} a message: {chosen.reason}"
        resident = max(
            psutil.Process(agent.pid).memory_info().rss for agent in self._cluster.agents.values()
        )
        return [
            Row.of(
                "microbatch", f"{name}: items", "/s", [BATCH / each for each in seconds],
                method=_METHOD, against=why,
            ),
            Row.of(
                "microbatch", f"{name}: latency", "ms", [each * 1e3 for each in seconds],
                method=_METHOD,
            ),
            Row.of(
                "microbatch", f"{name}: memory", "MB", [resident / 1e6],
                method="the largest agent's resident memory, after the batches",
            ),
        ]  # fmt: skip

    async def _serve(self, size: int | None) -> None:
        if self._model == NAME:
            await serve_tiny(
                self._context.say, self._cluster, 3, runtime=self._runtime, micro_batch=size
            )
            return
        flags = ServeFlags(
            weights="none",
            min_stages=3,
            max_stages=3,
            runtime=self._runtime,
            micro_batch=size,
            timeout_s=300.0,
        )
        source = MODEL
        if self._model == "bert":
            source = _BERT
            shapes = tuple(InputShape.parse(f"{name}:1x{TOKENS}:int64") for name in ("ids", "mask"))
            flags = replace(flags, weights="default", name="bert", input_shapes=shapes)
        await self._cluster.serve(source, flags)

    async def _batch(self, client: Client) -> float:
        began = time.monotonic()
        results = await client.infer_batch(self._model, self._inputs, timeout_s=300.0)
        seconds = time.monotonic() - began
        for result in results:
            if isinstance(result, JobError):
                raise result
        return seconds

    async def _chosen(self, client: Client) -> MicroBatchRow | None:
        status = await client.status()
        (state,) = [model for model in status.models if model.model == self._model]
        return state.pipelines[0].micro_batch


def _inputs(model: str) -> _Inputs:
    if model != "bert":
        return [PHOTO.read_bytes()] * BATCH
    random = np.random.default_rng(0)
    return [
        {
            "ids": random.integers(0, VOCABULARY, (1, TOKENS)),
            "mask": np.ones((1, TOKENS), np.int64),
        }
        for _ in range(BATCH)
    ]
