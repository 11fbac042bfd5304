"""A cut that moves: from the decision until every stage of the new plan takes activations, and its bytes.

MobileNetV2 in three stages on a real cluster, on loopback; it is asked for with the cuts of one way of
planning after another, so that they move there and back. `new` moves to nodes that have to fetch what they
did not hold (what no stage uses is taken out of the nodes' caches before); `back` to nodes that still have
it. The figures are those of the orchestrator's own records, `amp4ec status --deployments`:
`slice` cuts stages out of the model, `fetch` and `load` (with one run on zeros) are of the slowest stage,
`the rest` is telling nodes and hearing from them. Prefetching is off: with it `new` would be as `back`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploy.local import LocalCluster
from deploy.operator import Operator, connect, new_transaction
from shared.codec import convert
from shared.messages.model import ModelState
from shared.messages.operation import Deployment, Deployments, DeploymentsRequest, ServeRequest
from shared.messages.stage import Blob
from tests.benchmarks.clusters import MODEL, SHARES, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.watch import Watch, watching

_STRATEGIES = ("equal", "optimal", "ralos")
_BARS_S = {"onnxruntime": 0.3, "torch": 1.5}
_WITHIN_S = 60.0
_KINDS = ("new", "back")


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows: list[Row] = []
    for cpus in (None, SHARES):
        for runtime in _BARS_S:
            seen = await _measure(context, runtime, cpus)
            rows += _rows(runtime, cpus, seen)
    return rows


@dataclass(slots=True)
class _Recuts:
    """Deployments by kind, and how many blocks changed their node in each."""

    found: dict[str, list[Deployment]] = field(default_factory=lambda: {k: [] for k in _KINDS})
    moved: dict[str, list[int]] = field(default_factory=lambda: {k: [] for k in _KINDS})


async def _measure(context: Context, runtime: str, cpus: Sequence[float] | None) -> _Recuts:
    name = f"recut-{runtime}-{'limited' if cpus else 'free'}"
    recuts = _Recuts()
    cycles = context.choose(3, 21)
    async with (
        calibrated(context, name, cpus=cpus, orchestrator_arguments=("--no-prefetch",)) as cluster,
        watching(cluster) as watch,
        connect(cluster.url, cluster.root) as operator,
    ):
        await serve(context, cluster, replace(THREE_STAGES, runtime=runtime))
        state = await cluster.wait_for_model(MODEL)
        for cycle in range(2 * cycles):
            if cycle % context.choose(2, 10) == 0:
                context.say(f"{name}: {cycle + 1} of {2 * cycles}")
            kind = _KINDS[cycle // len(_STRATEGIES) % 2]
            if kind == "new":
                await asyncio.to_thread(_forget_unused, cluster)
            before, cuts = state, _STRATEGIES[cycle % len(_STRATEGIES)]
            state, deployment = await _recut(cluster, operator, watch, before, cuts)
            recuts.found[kind].append(deployment)
            recuts.moved[kind].append(_moved(before, state))
    return recuts


async def _recut(
    cluster: LocalCluster, operator: Operator, watch: Watch, before: ModelState, strategy: str
) -> tuple[ModelState, Deployment]:
    """Ask for the cuts of a strategy, and wait until the old ones are let go."""
    assert before.manifest is not None
    began = asyncio.get_running_loop().time()
    request = ServeRequest(
        transaction=new_transaction(),
        model=MODEL,
        manifest=Blob(digest=before.manifest, size=before.manifest_bytes),
        blobs=[],
        provider=operator.peer,
        options=replace(before.options, strategy=strategy),
    )
    await operator.ask(request, _WITHIN_S, lambda _: None)
    state = await cluster.wait_for_model(MODEL, newer_than=before.generation)
    asked = DeploymentsRequest(transaction=new_transaction(), most=1)
    response = await operator.ask(asked, _WITHIN_S, lambda _: None)
    (deployment,) = convert(response.data, Deployments).deployments
    await watch.happening("generation_drained", began, _WITHIN_S)
    return state, deployment


def _moved(before: ModelState, after: ModelState) -> int:
    places = [
        {
            block: stage.node
            for pipeline in state.pipelines
            for stage in pipeline.stages
            for block in range(*stage.blocks)
        }
        for state in (before, after)
    ]
    return sum(places[0].get(block) != node for block, node in places[1].items())


def _forget_unused(cluster: LocalCluster) -> None:
    """Take out of the agents' caches what no stage holds, as eviction does."""
    for agent in cluster.agents:
        for path in (cluster.directory / agent / "blobs").glob("??/*"):
            _evict(path)


def _evict(path: Path) -> None:
    with contextlib.suppress(BlockingIOError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _rows(runtime: str, cpus: Sequence[float] | None, recuts: _Recuts) -> list[Row]:
    where = f"{runtime}, {'/'.join(map(str, cpus)) + ' CPU' if cpus else 'cores shared by three'}"
    method = (
        "decision to ready, by the orchestrator's records; MobileNetV2 in three stages, loopback"
    )
    rows = []
    for kind in _KINDS:
        found, moved = recuts.found[kind], recuts.moved[kind]
        blocks = f"{min(moved)} to {max(moved)} of 53 blocks change their node"
        rows.append(
            Row.of(
                "recut", f"{where}: {kind}", "ms", [each.took_s * 1e3 for each in found],
                method=method, against=blocks, bar=Bar(_BARS_S[runtime] * 1e3),
            )
        )  # fmt: skip
        rows += [
            Row.of(
                "recut",
                f"{where}: {kind}, {phase}",
                unit,
                [of(each) for each in found],
                method=method,
            )
            for phase, unit, of in _PHASES
        ]
    return rows


def _slowest(deployment: Deployment, phase: str) -> float:
    """Milliseconds of a phase of the stage that took longest in all."""
    last = max(deployment.stages, key=lambda stage: stage.fetch_s + stage.load_s)
    return float(getattr(last, phase)) * 1e3


def _rest_ms(deployment: Deployment) -> float:
    known = _slowest(deployment, "fetch_s") + _slowest(deployment, "load_s")
    return max(0.0, deployment.took_s * 1e3 - deployment.slice_s * 1e3 - known)


_PHASES: tuple[tuple[str, str, Callable[[Deployment], float]], ...] = (
    ("slice", "ms", lambda each: each.slice_s * 1e3),
    ("fetch", "ms", lambda each: _slowest(each, "fetch_s")),
    ("load", "ms", lambda each: _slowest(each, "load_s")),
    ("the rest", "ms", _rest_ms),
    ("bytes per re-plan", "kB", lambda each: each.fetched_bytes / 1e3),
)
