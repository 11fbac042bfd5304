"""Serve a model: import and time it here, hand it to the orchestrator, wait until it answers."""

from __future__ import annotations

import asyncio

from deploy.flags import ServeFlags
from deploy.library import ModelLibrary, Prepared
from deploy.operator import Operator, Step, connect, new_transaction
from shared.bus import BrokerUrl
from shared.codec import convert
from shared.messages.model import ModelState, ServeOptions
from shared.messages.operation import ServeRequest, StopRequest

_GRACE_S = 5.0
"""The orchestrator keeps the time and knows what is missing; this long it may take to say so."""


async def serve(
    broker: BrokerUrl, root: str, model: str, flags: ServeFlags, step: Step
) -> ModelState:
    """Have `model` served; returns its state when it is.

    Args:
        broker: where the orchestrator is.
        root: the cluster's root topic.
        model: a name, file or factory, as in `orchestrator.models.source`.
        flags: how it shall be served, and how long to wait for that.
        step: gets a line per step.

    Raises:
        ConfigurationError: none of these, or flags that do not go with it.
        BrokerUnreachableError: nobody answers at the broker's address.
        ModelError: the model or its weights cannot be had.
        JobError: the orchestrator refused, or could not get it served in time; says what is missing.
        NotAnsweredError: no orchestrator answered in time.
    """
    source = flags.source(model)
    library = ModelLibrary()
    try:
        async with connect(broker, root, library.store) as operator:
            loop = asyncio.get_running_loop()

            def in_thread(text: str) -> None:
                loop.call_soon_threadsafe(step, text)

            prepared = await asyncio.to_thread(
                library.prepare,
                source,
                in_thread,
                level=flags.level,
                samples=flags.calibrate,
                min_agreement=flags.min_agreement,
                runtime=flags.runtime,
                preprocess=flags.preprocess,
                labels=flags.labels,
            )
            return await hand_over(operator, prepared, flags.options(), flags.timeout_s, step)
    finally:
        library.close()


async def hand_over(
    operator: Operator, prepared: Prepared, options: ServeOptions, timeout_s: float, step: Step
) -> ModelState:
    """Have what was prepared served; returns the model's state when it is.

    Args:
        operator: connected, and gives away what lies in the store of `prepared`.
        prepared: the model.
        options: how it shall be served.
        timeout_s: how long to wait for that.
        step: gets a line per step.

    Raises:
        JobError: the orchestrator refused, or could not get it served in time; says what is missing.
        NotAnsweredError: no orchestrator answered in time.
    """
    request = ServeRequest(
        transaction=new_transaction(),
        model=prepared.package.manifest.model,
        manifest=prepared.manifest,
        blobs=list(prepared.package.weights),
        provider=operator.peer,
        options=options,
        timeout_s=timeout_s,
    )
    response = await operator.ask(request, timeout_s + _GRACE_S, step)
    return convert(response.data, ModelState)


async def stop(broker: BrokerUrl, root: str, model: str, timeout_s: float) -> None:
    """Have `model` not served any more.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
        JobError: no model of that name is served.
        NotAnsweredError: no orchestrator answered in time.
    """
    async with connect(broker, root) as operator:
        request = StopRequest(transaction=new_transaction(), model=model)
        await operator.ask(request, timeout_s, lambda _: None)
