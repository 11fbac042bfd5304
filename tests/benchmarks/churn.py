"""Agents that die and come back: how long until the next generation answers.

Three agents at 0.5, 0.3 and 0.2 CPU serve MobileNetV2 in three stages, a client asks ten times a second. In
turn each agent is killed (SIGKILL), and started again once the others have taken over; its calibration and
weights are in its cache by then. `kill` runs from the signal, `join` from the birth's arrival here. Every job
must be answered. All of it for each way to run a stage: torch imported with the first stage, torch imported
before the birth (`--preload`), and ONNX Runtime.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from deploy.local import LocalCluster
from tests.benchmarks.clusters import MODEL, SHARES, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Trickle, describe
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.watch import Watch, watching

_PERIOD_S = 0.1
_METHOD = "10 JPEGs a second, three stages at 0.5/0.3/0.2 CPU; each agent in turn"
_WITHIN_S = 180.0
_ANSWER = Bar(2.0, of="high")
_DETECTION = Bar(0.2, of="high")


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to run stages: what it is called, and the flags that ask for it."""

    name: str
    runtime: str
    agent_arguments: tuple[str, ...]


_WAYS = (
    _Way("torch", "torch", ()),
    _Way("torch --preload", "torch", ("--preload",)),
    _Way("onnxruntime", "onnxruntime", ()),
)


@dataclass(slots=True)
class _Times:
    """Seconds by figure; each value with the CPU share of the agent it is about."""

    values: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, figure: str, share: float, seconds: float) -> None:
        self.values.setdefault(figure, []).append((share, seconds))

    def of(self, figure: str, share: float | None = None) -> list[float]:
        found = self.values.get(figure, [])
        return [seconds for at, seconds in found if share is None or at == share]


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows: list[Row] = []
    for way in _WAYS:
        rows += await _churned(context, way)
    return rows


async def _churned(context: Context, way: _Way) -> list[Row]:
    cycles = context.choose(3, 20)
    directory = f"churn-{way.name.replace(' ', '')}"
    async with (
        calibrated(context, directory, agent_arguments=way.agent_arguments) as cluster,
        watching(cluster) as watch,
        cluster.client() as client,
    ):
        await serve(context, cluster, replace(THREE_STAGES, runtime=way.runtime))
        trickle = Trickle(client, MODEL, jpeg_input(), _PERIOD_S)
        churn = _Churn(cluster, watch, trickle)
        names = list(churn.shares)
        async with trickle:
            await trickle.newer_than(0, _WITHIN_S)
            for cycle in range(cycles):
                name = names[cycle % len(names)]
                context.say(
                    f"churn, {way.name}: {cycle + 1} of {cycles}, {name} ({churn.shares[name]} CPU)"
                )
                await churn.kill(name)
                await churn.join(name)
    for error in trickle.failed[:5]:
        context.say(f"churn: a job failed: {error}")
    return [
        *_kill_rows(churn.kills, way.name),
        *_join_rows(churn.joins, way.name),
        _answered(trickle, way.name),
        _false_alarms(watch, way.name),
    ]


class _Churn:
    """A serving cluster, and what is done to it."""

    def __init__(self, cluster: LocalCluster, watch: Watch, trickle: Trickle) -> None:
        self.kills, self.joins = _Times(), _Times()
        self.shares = dict(zip(cluster.agents, SHARES, strict=True))
        self._cluster = cluster
        self._watch = watch
        self._trickle = trickle

    async def kill(self, name: str) -> None:
        """Kill an agent, and wait until the others answer."""
        generation = await self._watch.quiet(_WITHIN_S)
        began = time.monotonic()
        # The signal alone: `kill_agent` also waits for the end, and for the cgroup to go.
        self._cluster.agents[name].process.kill()
        lost = await self._watch.state(name, "lost", began, _WITHIN_S)
        self.kills.add("detection", self.shares[name], lost.at - began)
        await self._switched(self.kills, name, generation, began, began)
        await self._cluster.kill_agent(name)

    async def join(self, name: str) -> None:
        """Start it again, and wait until it answers with the others."""
        generation = await self._watch.quiet(_WITHIN_S)
        began = time.monotonic()
        await self._cluster.add_agent(name, cpu=self.shares[name])
        born = await self._watch.state(name, "online", began, _WITHIN_S)
        self.joins.add("birth", self.shares[name], born.at - began)
        await self._switched(self.joins, name, generation, began, born.at)

    async def _switched(
        self, times: _Times, name: str, generation: int, since: float, origin: float
    ) -> None:
        """Wait for the generation after `generation`; note its steps in seconds from `origin`."""
        answer = await self._trickle.newer_than(generation, _WITHIN_S)
        planned = await self._watch.happening("replanned", since, _WITHIN_S)
        active = await self._watch.happening("pipeline_active", since, _WITHIN_S)
        # Births and events come by different topics: what is planned at once may overtake the birth here.
        times.add("plan", self.shares[name], max(0.0, planned.at - origin))
        times.add("active", self.shares[name], active.at - origin)
        times.add("answer", self.shares[name], answer.at - origin)


def _kill_rows(times: _Times, way: str) -> list[Row]:
    parts, method = _parts(times), f"{way}; {_METHOD}"
    return [
        Row.of(
            "kill", "SIGKILL to will seen (detection)", "s", times.of("detection"),
            method=method, bar=_DETECTION,
        ),
        Row.of(
            "kill", "SIGKILL to first answer of the new generation", "s", times.of("answer"),
            method=method, against=parts, bar=_ANSWER,
        ),
        *_by_share("kill", "SIGKILL to first answer", times, method),
    ]  # fmt: skip


def _join_rows(times: _Times, way: str) -> list[Row]:
    method = f"{way}; {_METHOD}; caches warm"
    return [
        Row.of(
            "join", "birth to first answer of the new generation", "s", times.of("answer"),
            method=method, against=_parts(times), bar=_ANSWER,
        ),
        *_by_share("join", "birth to first answer", times, method),
        Row.of(
            "join", "process start to birth", "s", times.of("birth"), method=method,
            against="the interpreter and its imports, at the agent's CPU share",
        ),
    ]  # fmt: skip


def _by_share(benchmark: str, figure: str, times: _Times, method: str) -> list[Row]:
    return [
        Row.of(benchmark, f"{figure}, agent at {share} CPU", "s", values, method=method)
        for share in SHARES
        if (values := times.of("answer", share))
    ]


def _parts(times: _Times) -> str:
    plan, active = _median(times.of("plan")), _median(times.of("active"))
    return f"of which (medians): planned {plan:.2f}, active {active:.2f} s"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _answered(trickle: Trickle, way: str) -> Row:
    share = 100.0 * len(trickle.answered) / max(1, trickle.sent)
    return Row.of(
        "churn", "jobs answered through all of it", "%", [share],
        method=f"{way}; a job each 0.1 s, by the client that repeats what was not answered",
        against=f"{trickle.sent} jobs; {describe(trickle.latencies_ms())}",
        bar=Bar(100.0, sense="at least"),
    )  # fmt: skip


def _false_alarms(watch: Watch, way: str) -> Row:
    silent = sum(
        seen.happening.event == "node_left" and "silent" in (seen.happening.reason or "")
        for seen in watch.happenings
    )
    return Row.of(
        "churn", "nodes taken for silent (killed ones have a last will)", "", [float(silent)],
        method=f"{way}; agents import and load at 0.5/0.3/0.2 CPU", bar=Bar(0.0),
    )  # fmt: skip
