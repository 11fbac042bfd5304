"""Requests of operators: to serve and stop, to plan and explain, and to take nodes out of plans.

A model is prepared before the cluster hears of it: its artifacts are fetched from whoever asked, read and
checked. Of two requests under one name the later counts, also while the earlier is being prepared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.announcer import Announcer, error_body
from orchestrator.core import cluster_events as events
from orchestrator.core.cluster import Cluster
from orchestrator.core.dispatch_stats import Snapshot
from orchestrator.core.figures import Objective
from orchestrator.core.plan import Front
from orchestrator.decisions import decisions
from orchestrator.deployment_log import DeploymentLog
from orchestrator.entries import choose_entry
from orchestrator.library import Library
from orchestrator.live_settings import LiveSettings
from orchestrator.plan_requests import PlanRequests
from shared.codec import decode_json, to_builtins
from shared.errors import Amp4ecError, ArtifactError, ErrorCode, JobError, ProtocolError
from shared.logs import get_log
from shared.messages.cordon import CordonRequest, DrainRequest, UncordonRequest
from shared.messages.health import Health, HealthRequest
from shared.messages.life import JobLife, JobLives, JobRequest
from shared.messages.operation import (
    Deployments,
    DeploymentsRequest,
    EventsRequest,
    ExplainRequest,
    Happening,
    KeptEvents,
    PlanRequest,
    ReplanRequest,
    ServeRequest,
    StopRequest,
)
from shared.messages.settings import InfoRequest, SetRequest
from shared.messages.stage import Blob
from shared.package import ModelPackage
from shared.topics import VERBS
from shared.transfer import Transfers

log = get_log(__name__)

_MOST_EARLY = 1000
_MOST_PREPARATIONS = 64
_ATTEMPTS = 2
"""A blob on disk may turn out damaged when it is read: then it is gone, and fetched once more."""


@dataclass(slots=True)
class _Preparation:
    """A model on its way in."""

    request: ServeRequest
    manifest: Blob
    task: asyncio.Task[None]


class Operators:
    """Takes requests.

    `step` gives the cluster's core an event; `dispatched` is the dispatcher's state, `lives` what it
    remembers of a job.

    Requests that come before `open` wait: what an earlier orchestrator served is not known before.
    """

    def __init__(
        self,
        *,
        library: Library,
        transfers: Transfers,
        cluster: Cluster,
        announcer: Announcer,
        step: Callable[[events.Event], None],
        dispatched: Callable[[], Snapshot | None],
        deployments: DeploymentLog,
        lives: Callable[[str], list[JobLife]],
        settings: LiveSettings,
        health: Callable[[], Health],
    ) -> None:
        self._library = library
        self._transfers = transfers
        self._cluster = cluster
        self._announcer = announcer
        self._step = step
        self._dispatched = dispatched
        self._deployments = deployments
        self._lives = lives
        self._settings = settings
        self._health = health
        self._plans = PlanRequests(
            library=library,
            transfers=transfers,
            cluster=cluster,
            announcer=announcer,
        )
        self._early: list[tuple[str, bytes | bytearray]] | None = []
        self._preparing: dict[str, _Preparation] = {}
        self._refused = 0

    @property
    def in_use(self) -> Collection[str]:
        """Digests of the packages that are being read."""
        return {each.manifest.digest for each in self._preparing.values()}

    def open(self) -> None:
        """Take requests from now on, those that came before first."""
        early, self._early = self._early or [], None
        for verb, payload in early:
            self.take(verb, payload)

    async def close(self) -> None:
        """End what is being prepared; who asked asks our successor again."""
        await self._plans.close()
        tasks = [each.task for each in self._preparing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def front(self, model: str, axes: Sequence[Objective]) -> Front:
        """See `PlanRequests.front`."""
        return await self._plans.front(model, axes)

    def events(self, wish: EventsRequest) -> list[Happening]:
        """The latest events, the latest last."""
        return self._announcer.latest(wish)

    def take(self, verb: str, payload: bytes | bytearray) -> None:
        """A message on `request/{verb}`; what is wrong with it is told to its sender where possible."""
        if self._early is not None:
            if len(self._early) < _MOST_EARLY:  # who gets no response asks again
                self._early.append((verb, payload))
            return
        try:
            match verb:
                case "serve":
                    self._serve(decode_json(payload, ServeRequest))
                case "stop":
                    self._stop(decode_json(payload, StopRequest))
                case "replan":
                    again = decode_json(payload, ReplanRequest)
                    self._step(events.ReplanAsked(time.monotonic(), again.transaction, again.model))
                case "explain":
                    self._explain(decode_json(payload, ExplainRequest))
                case "deployments":
                    listed = decode_json(payload, DeploymentsRequest)
                    found = Deployments(deployments=self._deployments.latest(listed))
                    self._done(verb, listed.transaction, found)
                case "events":
                    wish = decode_json(payload, EventsRequest)
                    self._done(verb, wish.transaction, KeptEvents(events=self.events(wish)))
                case "job":
                    sought = decode_json(payload, JobRequest)
                    self._done(verb, sought.transaction, JobLives(jobs=self._lives(sought.job)))
                case "cordon":
                    self._cordon(decode_json(payload, CordonRequest))
                case "drain":
                    self._cordon(decode_json(payload, DrainRequest))
                case "uncordon":
                    lift = decode_json(payload, UncordonRequest)
                    now = time.monotonic()
                    self._step(events.UncordonAsked(now, lift.transaction, lift.node))
                case "plan":
                    self._plans.take(decode_json(payload, PlanRequest))
                case "set":
                    change = decode_json(payload, SetRequest)
                    self._done(verb, change.transaction, self._settings.set(change))
                case "info":
                    asked = decode_json(payload, InfoRequest)
                    self._done(verb, asked.transaction, self._settings.info())
                case "health":
                    whole = decode_json(payload, HealthRequest)
                    self._done(verb, whole.transaction, self._health())
                case _:
                    raise ProtocolError(
                        "unknown verb", expected="one of " + ", ".join(sorted(VERBS)), got=verb[:64]
                    )
        except Exception as error:
            if isinstance(error, Amp4ecError):
                self._refused += 1
                if self._refused.bit_count() == 1:  # a flood must not flood the log
                    log.warning(
                        "a request was refused",
                        verb=verb[:64],
                        error=error,
                        transaction=transaction_of(payload),
                        so_far=self._refused,
                    )
            else:
                log.exception("a request failed", verb=verb, transaction=transaction_of(payload))
            self._announcer.failed(verb, transaction_of(payload), error_body(error))

    def _done(self, verb: str, transaction: str, data: object) -> None:
        self._announcer.done(verb, transaction, to_builtins(data))

    def _cordon(self, request: CordonRequest | DrainRequest) -> None:
        now = time.monotonic()
        drain = isinstance(request, DrainRequest)
        self._step(
            events.CordonAsked(
                now,
                request.transaction,
                request.node,
                drain=drain,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                reason=request.reason,
                deadline=now + request.timeout_s if isinstance(request, DrainRequest) else now,
            )
        )

    def _explain(self, request: ExplainRequest) -> None:
        found = decisions(self._dispatched(), request.model, time.monotonic())
        self._done("explain", request.transaction, found)

    def _stop(self, request: StopRequest) -> None:
        preparing = self._abandon(request.model, "it was stopped")
        if preparing and request.model not in self._cluster.models:
            self._announcer.done("stop", request.transaction, {"model": request.model})
            return
        self._step(events.StopAsked(time.monotonic(), request.transaction, request.model))

    def _serve(self, request: ServeRequest) -> None:
        running = self._preparing.get(request.model)
        if running is not None and running.request.transaction == request.transaction:
            return  # the request was delivered twice
        manifest = request.manifest or self._manifest_of(request.model)
        self._abandon(request.model, "something else was asked for under this name")
        if len(self._preparing) >= _MOST_PREPARATIONS:
            raise JobError(
                ErrorCode.OVERLOADED,
                "too many models are being prepared",
                expected=f"at most {_MOST_PREPARATIONS} at once",
                got="one more",
            )
        task = asyncio.create_task(self._prepare(request, manifest), name=f"serve {request.model}")
        preparation = self._preparing[request.model] = _Preparation(request, manifest, task)

        def ended(_: asyncio.Task[None]) -> None:
            if self._preparing.get(request.model) is preparation:
                del self._preparing[request.model]

        task.add_done_callback(ended)

    def _abandon(self, model: str, why: str) -> bool:
        """End the preparation of a model, if there is one; who asked for it is told why."""
        running = self._preparing.pop(model, None)
        if running is None or running.task.done():
            return False
        running.task.cancel()
        error = JobError(ErrorCode.UNAVAILABLE, f"{model} is not served: {why}")
        self._announcer.failed("serve", running.request.transaction, error_body(error))
        return True

    def _manifest_of(self, model: str) -> Blob:
        """The package of a model that is served.

        Raises:
            JobError: it is not.
        """
        served = self._cluster.models.get(model)
        if served is None:
            raise JobError(
                ErrorCode.UNKNOWN_MODEL,
                f"{model} is not served, and the request names no manifest",
                expected="a manifest, as `amp4ec serve` uploads it, or one of the models served: "
                + (", ".join(sorted(self._cluster.models)) or "none"),
                got=model,
            )
        digest = served.entry.manifest
        return Blob(digest=digest, size=self._library.manifest_bytes(digest))

    async def _prepare(self, request: ServeRequest, manifest: Blob) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(request.timeout_s):
                package = await self._fetch(request, manifest)
            if package.manifest.model != request.model:
                raise ProtocolError(
                    "the package is of another model",
                    expected=request.model,
                    got=package.manifest.model,
                )
            entry = await choose_entry(self._cluster, package, manifest.digest, request.options)
            self._step(
                events.ServeAsked(
                    time.monotonic(), request.transaction, entry, began + request.timeout_s
                )
            )
        except Exception as error:
            told: Exception = error
            if isinstance(error, TimeoutError):
                told = JobError(
                    ErrorCode.UNAVAILABLE,
                    f"not served in time: the artifacts of {request.model} were not all here",
                    expected=f"within {request.timeout_s:g} s",
                    got=f"{len(self._missing(request, manifest))} missing",
                )
            elif not isinstance(error, Amp4ecError):
                # Ours, not the sender's: they are told, the traceback is for us.
                log.exception(
                    "serving failed", model=request.model, transaction=request.transaction
                )
            self._announcer.failed("serve", request.transaction, error_body(told))

    async def _fetch(self, request: ServeRequest, manifest: Blob) -> ModelPackage:
        """The package, with all that it names."""
        for attempt in range(1, _ATTEMPTS + 1):
            wanted = self._missing(request, manifest)
            provider = request.provider
            if wanted and provider is None:
                raise ProtocolError(
                    "artifacts are missing, and nobody is named who has them",
                    expected="a provider",
                    got=f"{len(wanted)} missing",
                )
            if wanted:
                total = sum(blob.size for blob in wanted)
                text = f"fetching {len(wanted)} artifacts, {total / 1e6:.1f} MB"
                self._announcer.progress("serve", request.transaction, text)
            fetches = [
                asyncio.ensure_future(self._transfers.fetch(blob, provider))
                for blob in wanted
                if provider is not None
            ]
            try:
                await asyncio.gather(*fetches)
            finally:
                for fetch in fetches:
                    fetch.cancel()
                await asyncio.gather(*fetches, return_exceptions=True)
            try:
                return await asyncio.to_thread(self._library.open, manifest.digest)
            except ArtifactError:
                if attempt == _ATTEMPTS or not self._missing(request, manifest):
                    raise
        raise AssertionError("unreachable")

    def _missing(self, request: ServeRequest, manifest: Blob) -> list[Blob]:
        return self._library.missing([manifest, *request.blobs])


def transaction_of(payload: bytes | bytearray) -> str:
    """The transaction of a request that is otherwise unreadable, so that its sender gets told; or empty."""
    try:
        given = decode_json(payload, dict)
    except ProtocolError:
        return ""
    transaction = given.get("transaction")
    return transaction if isinstance(transaction, str) and len(transaction) <= 128 else ""
