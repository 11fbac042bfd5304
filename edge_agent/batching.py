"""Several items through a stage: laid behind each other, and computed as many at once as costs least here.

A stage that cannot take several at once never gets several; the plan knows. How many of those that came
together are computed at once is the stage's own choice, by what it measured: one that repeats convolutions
may take them one by one, while the next one multiplies by large matrices and is faster with all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from shared.batch_costs import BatchCosts, sizes_up_to
from shared.errors import StageError
from shared.tensor import Array

Run = Callable[[dict[str, Array]], dict[str, Array]]


def stack(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The inputs of several items as those of a batch, along axis 0."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_batch(
    run: Run, inputs: dict[str, Array], items: int, costs: BatchCosts
) -> dict[str, Array]:
    """The outputs of `items` items along axis 0, computed a few at a time; `costs` says how many, and learns.

    Raises:
        StageError: an input or output is not `items` long along axis 0, or `run` raises it.
    """
    if items == 1:
        return _timed(run, inputs, 1, costs)
    _check(inputs, items, "input")
    sizes = sizes_up_to(items)
    size = costs.to_try(sizes) or costs.best(sizes)
    parts = [
        _timed(
            run,
            {name: array[at : at + size] for name, array in inputs.items()},
            min(size, items - at),
            costs,
        )
        for at in range(0, items, size)
    ]
    outputs = stack(parts)
    _check(outputs, items, "output")
    return outputs


def _timed(run: Run, inputs: dict[str, Array], items: int, costs: BatchCosts) -> dict[str, Array]:
    began = time.thread_time()
    outputs = run(inputs)
    costs.measured(items, (time.thread_time() - began) / items)
    return outputs


def _check(arrays: dict[str, Array], items: int, what: str) -> None:
    for name, array in arrays.items():
        if array.shape[:1] != (items,):
            raise StageError(
                f"{what} {name!r} of several items",
                expected=f"{items} along axis 0",
                got=str(list(array.shape)),
            )
