"""Does what the cluster's core decided: tells nodes, the dispatcher, operators and whoever watches.

What goes wrong with one action stays with it: it is logged, counted and told, and the next is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import assert_never

from orchestrator.announcer import Announcer, error_body
from orchestrator.core import cluster_events as events
from orchestrator.deployer import Deployer
from orchestrator.deployment_log import DeploymentLog
from orchestrator.model_states import ModelStates
from orchestrator.outbox import Outbox
from orchestrator.served_file import ServedFile
from shared.codec import to_builtins
from shared.errors import JobError
from shared.logs import get_log
from shared.messages.node import Ping

log = get_log(__name__)


class ClusterActions:
    """One per time of leading, in its event loop."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        announcer: Announcer,
        deployer: Deployer,
        states: ModelStates,
        served: ServedFile,
        deployments: DeploymentLog,
        counters: Counter[str],
    ) -> None:
        self._outbox = outbox
        self._announcer = announcer
        self._deployer = deployer
        self._states = states
        self._served = served
        self._deployments = deployments
        self._counters = counters

    def perform(self, actions: Iterable[events.Action]) -> None:
        """Do them in order; raises nothing."""
        for action in actions:
            try:
                self._perform(action)
            except Exception as error:
                self._counters["internal_errors"] += 1
                log.exception("an action failed", action=type(action).__name__)
                if isinstance(action, events.Finish):
                    self._announcer.failed(action.verb, action.transaction, error_body(error))
                model = getattr(action, "model", None)
                text = f"{type(action).__name__} failed: {error}"
                self._announcer.happened(events.Tell("internal_error", text, model=model))

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.AskNode(node):
                self._outbox.publish("ping", Ping(node=node), qos=0, node=node)
            case events.PushAssignment():
                self._deployer.assign(action)
            case events.ClearAssignment():
                self._deployer.clear(action)
            case events.ForgetNode():
                self._deployer.forget(action)
            case (
                events.ModelKnown()
                | events.ModelForgotten()
                | events.ActivatePipeline()
                | events.DrainPipeline()
                | events.LosePipeline()
            ):
                self._deployer.tell(action)
            case events.DeploymentEnded():
                slice_s = self._deployer.take_slice_s(action.model, action.generation)
                self._deployments.add(action, slice_s)
            case events.PublishModel(model):
                self._served.write(model, self._states.publish(model, time.monotonic()))
            case events.PublishCordon(node, None):
                self._outbox.clear("cordon", node=node)
            case events.PublishCordon(node, cordon):
                self._outbox.publish("cordon", cordon, retain=True, node=node)
            case events.Tell():
                self._announcer.happened(action)
            case events.Progress(transaction, verb, text):
                self._announcer.progress(verb, transaction, text)
            case events.Finish():
                self._finish(action)
            case _:
                assert_never(action)

    def _finish(self, action: events.Finish) -> None:
        if action.error is not None:
            error = JobError(action.code, action.error)
            self._announcer.failed(action.verb, action.transaction, error_body(error))
            return
        data: dict[str, object] = {}
        if action.node is not None:
            data["node"] = action.node
        if action.model is not None:
            state = self._states.state(action.model, time.monotonic())
            data |= {"model": action.model} if state is None else to_builtins(state)
        self._announcer.done(action.verb, action.transaction, data)
