"""The `plan` request: what should run where now, and what that is said from. Nothing is changed by it.

The answer holds the figures that the orchestrator would plan with itself (the profile, and the nodes as they
were measured and corrected), so that whoever asks can plan further with the same planner: other goals, the
alternatives, a front. A plan is made only where options came with the request, in a thread, one at a time:
planning for a large cluster takes a second, and the loop has births and deaths to take in.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from orchestrator.announcer import Announcer, error_body
from orchestrator.core import replan
from orchestrator.core.cluster import Cluster
from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.cluster_settings import Zones
from orchestrator.core.figures import Objective
from orchestrator.core.front import front as find_front
from orchestrator.core.plan import Front
from orchestrator.core.plan_document import plan_document
from orchestrator.entries import choose_entry
from orchestrator.library import Library
from shared.codec import to_builtins
from shared.errors import Amp4ecError, ErrorCode, JobError, PlanError
from shared.logs import get_log
from shared.messages.model import ServeOptions
from shared.messages.operation import PlanAnswer, PlanRequest
from shared.profile import NodeProfile
from shared.transfer import Transfers

log = get_log(__name__)

_MOST_REQUESTS = 64


class PlanRequests:
    """Answers them."""

    def __init__(
        self,
        *,
        library: Library,
        transfers: Transfers,
        cluster: Cluster,
        announcer: Announcer,
    ) -> None:
        self._library = library
        self._transfers = transfers
        self._cluster = cluster
        self._announcer = announcer
        self._one_at_a_time = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def take(self, request: PlanRequest) -> None:
        """Answer a request in a while; one that comes twice is answered once.

        Raises:
            JobError: too many wait.
        """
        transaction = request.transaction
        if transaction not in self._tasks:
            if len(self._tasks) >= _MOST_REQUESTS:
                raise JobError(
                    ErrorCode.OVERLOADED,
                    "too many plans are asked for",
                    expected=f"at most {_MOST_REQUESTS} at once",
                    got="one more",
                )
            task = asyncio.create_task(self._answer(request), name=f"plan {request.model}")
            self._tasks[transaction] = task
            task.add_done_callback(lambda _: self._tasks.pop(transaction, None))

    async def front(self, model: str, axes: Sequence[Objective]) -> Front:
        """The plans of a served model, as it was asked for, that no other beats in all of `axes`.

        Raises:
            JobError: no such model is served.
            PlanError: none is possible now.
            ConfigurationError: fewer than two axes, or one twice.
        """
        async with self._one_at_a_time:
            entry = await self._entry(PlanRequest(transaction="front", model=model))
            nodes = self._nodes(entry)
            request = replan.as_asked(entry, nodes, self._cluster.settings.zones)
            return await asyncio.to_thread(find_front, request, axes)

    async def close(self) -> None:
        """End what is not answered; who asked asks our successor again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, request: PlanRequest) -> None:
        try:
            async with self._one_at_a_time:
                data = to_builtins(await self._plan(request))
        except Exception as error:
            if not isinstance(error, Amp4ecError):
                # Ours, not the sender's: they are told, the traceback is for us.
                log.exception(
                    "planning failed", model=request.model, transaction=request.transaction
                )
            told = error
            if isinstance(error, PlanError):
                told = JobError(
                    ErrorCode.UNAVAILABLE, error.message, expected=error.expected, got=error.got
                )
            self._announcer.failed("plan", request.transaction, error_body(told))
        else:
            self._announcer.done("plan", request.transaction, data)

    async def _plan(self, request: PlanRequest) -> PlanAnswer:
        entry = await self._entry(request)
        nodes = self._nodes(entry)
        plan, zones = None, self._cluster.settings.zones
        if request.options is not None:
            plan = await asyncio.to_thread(_plan_document, entry, nodes, zones)
        return PlanAnswer(
            runtime=entry.runtime,
            profile=entry.profile,
            nodes=list(nodes),
            plan=plan,
            broker_zone=zones.broker,
            orchestrator_zone=zones.orchestrator,
        )

    def _nodes(self, entry: ModelEntry) -> tuple[NodeProfile, ...]:
        nodes = self._cluster.offered(entry)
        if not nodes:
            raise PlanError(
                replan.no_nodes(entry, self._cluster.alive()),
                expected=f"a node with the runtime {entry.runtime}",
                got="none",
            )
        return nodes

    async def _entry(self, request: PlanRequest) -> ModelEntry:
        """The model that is asked about, with the options that are asked about."""
        if request.manifest is None:
            served = self._cluster.models.get(request.model)
            if served is None:
                names = ", ".join(sorted(self._cluster.models)) or "no model"
                raise JobError(
                    ErrorCode.UNKNOWN_MODEL,
                    "no such model is served",
                    expected=names,
                    got=request.model,
                )
            entry = self._cluster.as_sent(served.entry)
            return (
                entry
                if request.options is None
                else dataclasses.replace(entry, options=request.options)
            )
        digest = request.manifest.digest
        await self._transfers.fetch(request.manifest, request.provider or "")
        package = await asyncio.to_thread(self._library.read, digest)
        options = request.options or ServeOptions()
        return await choose_entry(self._cluster, package, digest, options)


def _plan_document(
    entry: ModelEntry, nodes: tuple[NodeProfile, ...], zones: Zones
) -> dict[str, object]:
    return plan_document(replan.choose(entry, nodes, zones).plan)
