"""The cluster that things happen to: three agents with networks of their own, one of them behind a relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.cluster import POLL_S, ChildEndedError
from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.log_lines import parse_line
from deploy.supervisor import Child
from tests.fakes.delay import DelayRelay

AGENTS = ("agent-1", "agent-2", "agent-3")
ORCHESTRATORS = ("orchestrator", "standby-1")
FAR = AGENTS[-1]
MODEL = "mobilenet_v2"
CPUS = 0.45
"""Of each agent; the rest of two cores is for broker, orchestrator and clients."""
STAGES = 2
_STANDBY_POLLS = 900


@dataclass(slots=True)
class Plant:
    """A cluster, and how to start its agents again."""

    cluster: LocalCluster
    relay: DelayRelay
    runtime: str

    async def start_agent(self, name: str, wrap: Sequence[str] = (), *further: str) -> Child:
        """Start `name` as it always is; `wrap` and `further` are this life's own."""
        arguments = [f"--runtime={self.runtime}", *further]
        if name == FAR:
            arguments.append(f"--broker=mqtt://{self.cluster.network.host}:{self.relay.port}")
        return await self.cluster.add_agent(name, CPUS, arguments=arguments, wrap=wrap)

    @property
    def orchestrators(self) -> dict[str, Child]:
        """By name: the one that was started first, and the standby."""
        first = self.cluster.orchestrator
        return {**({first.name: first} if first else {}), **self.cluster.standbys}

    async def leader(self) -> str:
        """The name of the orchestrator that leads, as far as the broker knows."""
        async with self.cluster.client() as client:
            state = (await client.status(wait_s=0.0)).orchestrator
        for name, child in self.orchestrators.items():
            if state is not None and state.pid == child.pid:
                return name
        return next(iter(self.orchestrators))

    async def start_orchestrator(self, name: str) -> Child:
        """Start one of the orchestrators again; it leads when no other does."""
        if name in self.cluster.standbys:
            return await self.cluster.start_standby(name)
        return await self.cluster.start_orchestrator()

    def ended(self) -> dict[str, str]:
        """Processes that are not there though nobody ended them: the end of their logs by name."""
        children = [*self.cluster.agents.values(), *self.orchestrators.values()]
        return {child.name: child.log_tail() for child in children if not child.alive}


async def _held_ready(standby: Child) -> None:
    """Wait until it could take over: a leader that dies before takes the only copy of the model along.

    Nothing but its log says so.
    """
    for _ in range(_STANDBY_POLLS):
        lines = map(parse_line, standby.log.read_text().splitlines())
        if any(line and line.event == "model held ready" for line in lines):
            return
        await asyncio.sleep(POLL_S)
    raise ChildEndedError(f"the standby does not hold {MODEL} ready:\n{standby.log_tail()}")


@asynccontextmanager
async def plant(
    directory: Path, runtime: str, *, orchestrator_arguments: Sequence[str] = ()
) -> AsyncIterator[Plant]:
    """A cluster that serves `MODEL` in `STAGES` stages.

    Raises:
        ChildEndedError: it is not served.
        ConfigurationError: this process may not make networks or limit CPU.
    """
    async with LocalCluster(
        directory, agents=0, isolated=True, orchestrator_arguments=orchestrator_arguments
    ) as cluster:
        relay = DelayRelay(cluster.network.host, cluster.broker.port)
        async with relay:
            made = Plant(cluster, relay, runtime)
            await asyncio.gather(*(made.start_agent(name) for name in AGENTS))
            await cluster.wait_for_nodes(len(AGENTS))
            flags = ServeFlags(
                weights="none",
                min_stages=STAGES,
                max_stages=STAGES,
                runtime=runtime,
                timeout_s=110,
            )
            await cluster.serve(MODEL, flags)
            await _held_ready(await cluster.start_standby())
            try:
                yield made
            finally:
                # While there is a relay to say goodbye through.
                await cluster.agents[FAR].stop()
