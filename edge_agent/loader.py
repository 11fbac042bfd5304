"""Turns an assigned stage, its blobs in the cache, into a stage that can run.

Loading takes long (importing a runtime under a quota of 0.2 CPU: 10 s), so it has a thread of its own: the
stages that run go on in theirs, and the event loop in its own. One load at a time: two at once would double
the peak of memory on a device that has little.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from edge_agent.runtimes import Runtime, open_runtime
from edge_agent.stage import Stage
from edge_agent.stage_input import StageInputs
from shared.codec import decode_json
from shared.compression import Compression
from shared.errors import StageError
from shared.graph import Graph, validate
from shared.logs import get_log
from shared.messages.stage import StageAssignment
from shared.pipeline_mac import PipelineMac
from shared.topics import Topics
from shared.transform import Transform

log = get_log(__name__)

T = TypeVar("T")


class LoaderThread:
    """Runs calls one after the other in a daemon thread.

    Not a `ThreadPoolExecutor`: the interpreter would wait at its end for a load that nobody wants any more.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._started = False

    async def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, made in the thread; a call whose turn has not come can be cancelled."""
        future: Future[T] = Future()

        def perform() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised again in who waits
                future.set_exception(error)

        if not self._started:
            self._started = True
            self._thread.start()
        self._calls.put(perform)
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """End the thread after what it does now."""
        self._calls.put(None)

    def _main(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class Loader:
    """Opens runtimes and loads stages; used in the loader's thread only.

    Args:
        node: this node's name, which its stage times carry.
        topics: the topic table below the agent's root.
        runtimes: the names that may be opened.
        threads: says how many threads a runtime may compute with, whenever a stage is loaded.
    """

    def __init__(
        self, node: str, topics: Topics, runtimes: tuple[str, ...], threads: Callable[[], int]
    ) -> None:
        self._node = node
        self._topics = topics
        self._names = runtimes
        self._threads = threads
        self._open: dict[str, Runtime] = {}

    def open(self, name: str) -> Runtime:
        """The runtime, imported at its first use.

        Raises:
            StageError: it is not one of this node's, or cannot be imported.
        """
        runtime = self._open.get(name)
        if runtime is None:
            if name not in self._names:
                raise StageError(
                    f"node {self._node} has no runtime {name!r}",
                    expected=f"one of: {', '.join(self._names) or 'none is installed'}",
                    got=name,
                )
            began = time.monotonic()
            runtime = self._open[name] = open_runtime(name)
            log.info(
                "runtime opened",
                runtime=name,
                version=runtime.version,
                took_s=time.monotonic() - began,
            )
        return runtime

    def load(self, life: int, assigned: StageAssignment, blobs: Mapping[str, Path]) -> Stage:
        """The stage, warmed up. `blobs` are the files of everything that it names, by digest.

        Raises:
            StageError: the runtime cannot load it.
            GraphError, ProtocolError, ConfigurationError: graph or transform are not what they should be.
        """
        runtime = self.open(assigned.runtime)
        graph = decode_json(blobs[assigned.graph.digest].read_bytes(), Graph)
        validate(graph)
        transform = None
        if assigned.preprocess is not None:
            transform = decode_json(blobs[assigned.preprocess.digest].read_bytes(), Transform)
        inputs = StageInputs(graph.inputs, transform, first=assigned.stage == 0)
        runner = runtime.load(
            graph,
            {blob.digest: blobs[blob.digest] for blob in assigned.weights},
            threads=self._threads(),
        )
        topic = partial(
            self._topics.topic, pipeline=assigned.pipeline, generation=assigned.generation
        )
        return Stage(
            life=life,
            node=self._node,
            model=assigned.model,
            pipeline=assigned.pipeline,
            generation=assigned.generation,
            index=assigned.stage,
            num_stages=assigned.num_stages,
            topic=topic("activation", stage=assigned.stage),
            next_topic=topic("activation", stage=assigned.stage + 1),
            result_topic=topic("stage_result"),
            runner=runner,
            inputs=inputs,
            mac=None if assigned.key is None else PipelineMac(bytes.fromhex(assigned.key)),
            compression=Compression.parse(assigned.compression),
        )
