"""What the running cluster's orchestrator would plan with: asked of it, so that its measurements count."""

from __future__ import annotations

import asyncio
from contextlib import closing

from deploy.library import ModelLibrary, Prepared, Step
from deploy.modelling import Modelling
from deploy.operator import Operator, connect, new_transaction
from shared.bus import BrokerUrl
from shared.codec import convert
from shared.errors import ConfigurationError, ErrorCode, JobError
from shared.ids import check_name
from shared.messages.operation import PlanAnswer, PlanRequest

ANSWER_S = 30.0
"""The orchestrator answers at once, unless it plans for somebody else."""


async def ask(broker: BrokerUrl, root: str, model: str, how: Modelling, step: Step) -> PlanAnswer:
    """The profile and the nodes for `model`: one that is served, by its name, else one that is measured here.

    Args:
        broker: where the orchestrator is.
        root: the cluster's root topic.
        model: a served model's name; or a name, file or factory, as in `orchestrator.models.source`.
        how: how it is read and timed, if it is not served.
        step: gets a line per step.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
        ConfigurationError: no such form of model.
        ModelError: the model or its weights cannot be had.
        JobError: the orchestrator refused; no node can run it, say.
        NotAnsweredError: no orchestrator answered in time.
    """
    with closing(ModelLibrary()) as library:
        async with connect(broker, root, library.store) as operator:
            served = await _served(operator, model, step)
            if served is not None:
                return served
            loop = asyncio.get_running_loop()

            def in_thread(text: str) -> None:
                loop.call_soon_threadsafe(step, text)

            prepared = await asyncio.to_thread(_prepare, library, model, how, in_thread)
            request = PlanRequest(
                transaction=new_transaction(),
                model=prepared.package.manifest.model,
                manifest=prepared.manifest,
                provider=operator.peer,
            )
            response = await operator.ask(request, ANSWER_S, step)
            return convert(response.data, PlanAnswer)


async def _served(operator: Operator, model: str, step: Step) -> PlanAnswer | None:
    """What is known of a served model of that name; None where none is served, or it is no name."""
    try:
        check_name("model", model)
    except ConfigurationError:
        return None
    try:
        request = PlanRequest(transaction=new_transaction(), model=model)
        response = await operator.ask(request, ANSWER_S, step)
    except JobError as error:
        if error.code is not ErrorCode.UNKNOWN_MODEL:
            raise
        return None
    return convert(response.data, PlanAnswer)


def _prepare(library: ModelLibrary, model: str, how: Modelling, step: Step) -> Prepared:
    from deploy.profile_model import prepare

    return prepare(library, model, how, step)
