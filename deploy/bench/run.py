"""All cells, one after the other, each kept as soon as it is measured.

For each runtime there is a cluster for each number of nodes, all of them started before anything is measured:
nodes without work use 0.3 % of a core each. A model is served on one of them at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from deploy.bench.cell import Lengths, Site, Trial, measure, serve
from deploy.bench.cells import SHARES, Cell, Kind
from deploy.bench.raw import Line, RawFile
from deploy.bench.subjects import Subject, prepare, subject_of
from deploy.bench.whole import write_whole
from deploy.bench.wire import listening
from deploy.cgroup import limit_cpu
from deploy.library import ModelLibrary, Prepared
from deploy.local import LocalCluster
from deploy.machine import Machine
from deploy.operator import connect
from deploy.peer import Peer
from deploy.serve import stop
from shared.artifact_store import ArtifactStore
from shared.client import ClusterStatus
from shared.errors import Amp4ecError

K = TypeVar("K")
Say = Callable[[str], None]
_START_S = 300.0
"""At 0.1 CPU importing torch alone takes half a minute, and all nodes do it at once."""
_STOP_S = 60.0
_QUIET_LOAD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured, how long, and where it goes.

    `directory` is scratch; `say` gets a line of progress each.
    """

    cells: Sequence[Cell]
    lengths: Lengths
    raw: RawFile
    machine: Machine
    directory: Path
    say: Say

    async def run(self) -> None:
        """Measure every cell that is not measured yet. One that cannot be is told of and kept as failed.

        Raises:
            ConfigurationError: CPU shares may not be enforced here; says why.
            Amp4ecError: a cluster could not be started.
        """
        done = self.raw.done(self.machine)
        left = [cell for cell in self.cells if cell not in done]
        self.say(f"{len(left)} of {len(self.cells)} cells to measure")
        if not left:
            return
        if self.machine.load_average > _QUIET_LOAD:
            self.say(
                f"others use this machine (load average {self.machine.load_average:g}): figures to rely on"
                " need it quiet, since several nodes get more of a busy machine than one process"
            )
        limit_cpu("amp4ec-bench", 1.0).remove()  # or else nothing of this can be: say so at once
        library = ModelLibrary()
        counted = _Counted(len(left))
        try:
            for runtime, cells in _grouped(left, lambda cell: cell.runtime):
                async with self._sites(runtime, cells, library.store) as sites:
                    for _, those in _grouped(cells, lambda cell: (cell.kind, cell.model)):
                        await self._model(library, sites, those, counted)
        finally:
            library.close()

    async def _model(
        self,
        library: ModelLibrary,
        sites: dict[int, Site],
        cells: Sequence[Cell],
        counted: _Counted,
    ) -> None:
        """All cells of a model with one runtime and level."""
        model, kind = cells[0].model, cells[0].kind
        subject = subject_of(model)
        self.say(f"{model}, {kind}: preparing")
        try:
            prepared = await asyncio.to_thread(
                prepare, library, subject, kind, self.directory / "samples", self.say
            )
            whole = await self._whole(prepared, kind, subject)
        except Amp4ecError as error:
            for cell in cells:
                counted.next()
                self._failed(cell, error, 0.0)
            return
        async with whole:
            trial = Trial(prepared=prepared, whole=whole, payload=subject.payload())
            for nodes, those in _grouped(cells, lambda cell: cell.nodes):
                before = ""
                for cell in those:
                    self.say(f"{counted.next()}  {cell}")
                    before = await self._cell(sites[nodes], trial, cell, before)
                await _stopped(sites[nodes], model)

    async def _cell(self, site: Site, trial: Trial, cell: Cell, before: str) -> str:
        """Measure one cell and keep it; the plan that was in force in the end."""
        began = time.monotonic()
        try:
            delivered = await serve(site, trial, cell, before)
            measured = await measure(site, trial, cell, delivered, self.lengths)
        except (Amp4ecError, psutil.NoSuchProcess) as error:  # a node may die of a model too large
            self._failed(cell, error, time.monotonic() - began)
            return before
        took_s = round(time.monotonic() - began, 1)
        self.raw.append(Line(machine=self.machine, cell=cell, measured=measured, took_s=took_s))
        ratio = statistics.median(each.ratio for each in measured.rounds)
        self.say(f"    {measured.plan}: {ratio:.2f} x the whole model's rate ({took_s:.0f} s)")
        return measured.plan

    def _failed(self, cell: Cell, error: Exception, took_s: float) -> None:
        self.say(f"    {cell}: not measured: {error}")
        line = Line(machine=self.machine, cell=cell, failed=str(error), took_s=round(took_s, 1))
        self.raw.append(line)

    async def _whole(self, prepared: Prepared, kind: Kind, subject: Subject) -> Peer:
        folder = self.directory / "whole"
        file = await asyncio.to_thread(
            write_whole, prepared, kind.runtime, subject.payload(), folder
        )
        limit = limit_cpu(f"amp4ec-bench-whole-{os.getpid()}", 1.0)
        return await Peer.start("deploy.bench.whole", str(file), limit=limit)

    @asynccontextmanager
    async def _sites(
        self, runtime: str, cells: Sequence[Cell], store: ArtifactStore
    ) -> AsyncIterator[dict[int, Site]]:
        """A running, calibrated cluster for each number of nodes."""
        counts = sorted({cell.nodes for cell in cells})
        self.say(f"{runtime}: starting {len(counts)} clusters with {sum(counts)} nodes")
        async with AsyncExitStack() as stack:
            sites: dict[int, Site] = {}
            for count in counts:
                cluster = LocalCluster(
                    self.directory / f"{runtime}-{count}",
                    agents=count,
                    cpus=SHARES[count],
                    log_level="warning",
                    agent_arguments=["--runtime", runtime, "--preload"],
                    # What a plan makes nodes fetch shall be told apart from what they fetch beside it.
                    orchestrator_arguments=["--no-prefetch"],
                )
                await stack.enter_async_context(cluster)
                sites[count] = Site(
                    cluster=cluster,
                    client=await stack.enter_async_context(cluster.client()),
                    operator=await stack.enter_async_context(
                        connect(cluster.url, cluster.root, store)
                    ),
                    fetches=await stack.enter_async_context(listening(cluster.url, cluster.root)),
                )
            for count, site in sites.items():
                await site.cluster.wait_for_nodes(timeout_s=_START_S)
                await site.cluster.wait_for(f"calibrations of {count}", _calibrated, _START_S)
            yield sites


@dataclass(slots=True)
class _Counted:
    total: int
    so_far: int = 0

    def next(self) -> str:
        """Which cell this is, for people."""
        self.so_far += 1
        return f"{self.so_far}/{self.total}"


def _calibrated(status: ClusterStatus) -> bool:
    return all(node.state.calibration for node in status.online)


async def _stopped(site: Site, model: str) -> None:
    """End with a model, whatever became of it."""
    try:
        await stop(site.cluster.url, site.cluster.root, model, _STOP_S)
    except Amp4ecError:
        return  # it was never served there


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], K]) -> list[tuple[K, list[Cell]]]:
    return [(name, list(those)) for name, those in itertools.groupby(cells, key)]
