"""Does a cut model give the whole model's answer? For every legal cut, and for random plans of many cuts.

    python -m tests.benchmarks.exactness [--models NAME,...|--all] [--sample N] [--plans N] [--harsh] [--json]
                                         [--form torchvision|onnx|pt2]

Method: the original module (eager, nothing folded, random weights whose BatchNorm statistics were made
sane) answers one random input. The model is imported as `amp4ec serve` does it, which may choose plain
kernels. Then, for each cut c, the stages [0, c) and [c, L) are sliced, loaded and run one after the
other as an agent would. The error is the largest difference divided by the largest output. `eager` is
the same error of the original itself against the original in float64: how far rounding alone takes two
correct float32 programs apart on these weights. `--harsh` sets every BatchNorm to scale 1 and shift 0,
as it starts: such networks amplify rounding, some beyond the promise. `--form` first writes the module to an
ONNX file (opset 17) or a torch.export archive and imports that, as if it came from elsewhere. All on one
thread. Exit status 1 when an error is above 1e-5.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from deploy.exactness import exact_model, relative_error
from edge_agent.runtimes import Runtime, open_runtime
from orchestrator.models.importer import ImportedModel, import_torchvision
from orchestrator.models.resolve import Import, open_source
from orchestrator.models.slice import slice_stage
from orchestrator.models.source import parse_source
from orchestrator.models.weights import calibrate_batch_norm
from orchestrator.models.zoo import Built, build
from shared.codec import encode_json
from shared.manifest import TOLERANCE

MODELS = (
    "mobilenet_v2",
    "resnet18",
    "densenet121",
    "googlenet",
    "efficientnet_b0",
    "vit_b_16",
    "swin_t",
)
OTHERS = ("resnet50", "resnext50_32x4d", "inception_v3")
"""Deep ones: with harsh weights the first two amplify rounding beyond the promise."""

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """One model's errors, all relative to its largest output."""

    model: str
    level: str
    kernels: str
    weights: str
    seed: int
    cuts: int
    plans: int
    max_error: float
    median_error: float
    whole_error: float
    eager_error: float
    worst: tuple[int, ...]
    failed: int
    seconds: float

    @property
    def passed(self) -> bool:
        return self.max_error <= TOLERANCE


def measure(
    name: str, *, level: str, sample: int, plans: int, seed: int, harsh: bool, form: str
) -> Row:
    """All errors of one model."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="amp4ec-exactness-") as folder:
        weights = _harsh(name, seed, Path(folder)) if harsh else "none"
        built = build(name, weights, seed)
        import_model: Import = partial(import_torchvision, name, weights, level, seed)
        if form != "torchvision":
            path = _written(built, Path(folder) / f"{name}.{form}")
            import_model = open_source(parse_source(str(path)), level)
        model = exact_model(
            import_model,
            ["torch"],
            lambda line: print(line, file=sys.stderr, flush=True),
        ).imported
    edge = built.input_edge
    x = np.random.default_rng(seed).standard_normal((1, 3, edge, edge), np.float32)
    with torch.inference_mode():
        expected = built.module(torch.from_numpy(x)).numpy()
        exact = copy.deepcopy(built.module).double()(torch.from_numpy(x).double()).numpy()
    runtime = open_runtime("torch")
    count = len(model.manifest.blocks)
    # Loaded all the time, so that the stages find their weights packed already.
    whole = runtime.load(slice_stage(model.manifest, 0, count), model.blobs)
    inputs = {model.manifest.graph.inputs[0].name: x}
    (answer,) = whole.run(inputs).values()

    errors: list[tuple[float, tuple[int, ...]]] = []
    wanted = list(_bounds(count, sample, plans, seed))
    for done, bounds in enumerate(wanted, start=1):
        (result,) = run_plan(runtime, model, bounds, inputs).values()
        errors.append((relative_error(result, expected), bounds))
        if sys.stderr.isatty() or done % 20 == 0 or done == len(wanted):
            print(f"{name}: {done} of {len(wanted)}", file=sys.stderr, flush=True)
    whole.unload()
    worst, bounds = max(errors)
    return Row(
        model=name,
        level=model.manifest.level,
        kernels=model.manifest.graph.kernels,
        weights="harsh" if harsh else "none",
        seed=seed,
        cuts=len(wanted) - plans,
        plans=plans,
        max_error=worst,
        median_error=float(np.median([error for error, _ in errors])),
        whole_error=relative_error(answer, expected),
        eager_error=relative_error(expected, exact),
        worst=bounds,
        failed=sum(error > TOLERANCE for error, _ in errors),
        seconds=round(time.perf_counter() - began, 1),
    )


def _written(built: Built, path: Path) -> Path:
    """The module as a file of the kind that the path's suffix says."""
    example = (torch.zeros(1, 3, built.input_edge, built.input_edge),)
    torch.backends.mha.set_fastpath_enabled(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters, about shapes that are fixed
        if path.suffix == ".onnx":
            torch.onnx.export(built.module, example, str(path), dynamo=False, opset_version=17)
        else:
            torch.export.save(torch.export.export(built.module, example), path)
    return path


def _harsh(name: str, seed: int, folder: Path) -> Path:
    """A file of random weights with every BatchNorm as it starts, its statistics calibrated."""
    built = build(name, "none", seed)
    for layer in built.module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_parameters()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        calibrate_batch_norm(built.module, (3, built.input_edge, built.input_edge))
    path = folder / "harsh.safetensors"
    safetensors.torch.save_file(built.module.state_dict(), path)
    return path


def run_plan(
    runtime: Runtime, model: ImportedModel, bounds: tuple[int, ...], inputs: Arrays
) -> Arrays:
    """The answer of the stages between `bounds`, run one after the other."""
    values = inputs
    for start, stop in pairwise(bounds):
        stage = runtime.load(slice_stage(model.manifest, start, stop), model.blobs)
        values = stage.run(values)
        stage.unload()
    return values


def _bounds(count: int, sample: int, plans: int, seed: int) -> Iterator[tuple[int, ...]]:
    cuts = list(range(1, count))
    if 0 < sample < len(cuts):
        cuts = [cuts[i * (len(cuts) - 1) // max(sample - 1, 1)] for i in range(sample)]
    yield from ((0, cut, count) for cut in cuts)
    rng = random.Random(seed)
    for _ in range(plans):
        size = rng.randint(2, min(8, count - 1))
        yield (0, *sorted(rng.sample(range(1, count), size)), count)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--models", default=",".join(MODELS), help="comma-separated names")
    models.add_argument("--all", action="store_true", help=f"the default, and {', '.join(OTHERS)}")
    parser.add_argument("--sample", type=int, default=0, help="cuts per model; 0: every one")
    parser.add_argument("--plans", type=int, default=5, help="random multi-cut plans per model")
    parser.add_argument("--level", default="O1", choices=("O0", "O1"))
    parser.add_argument("--seed", type=int, default=0, help="of weights and input")
    parser.add_argument(
        "--form", default="torchvision", choices=("torchvision", "onnx", "pt2"), help="read from"
    )
    parser.add_argument("--harsh", action="store_true", help="weights that amplify rounding")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in (*MODELS, *OTHERS) if options.all else options.models.split(","):
        row = measure(
            name,
            level=options.level,
            sample=options.sample,
            plans=options.plans,
            seed=options.seed,
            harsh=options.harsh,
            form=options.form,
        )
        rows.append(row)
        if not options.json:
            print(
                f"{row.model:16} {row.kernels:5} {row.cuts:4} cuts {row.plans:3} plans"
                f"  max {row.max_error:.1e}"
                f"  median {row.median_error:.1e}  whole {row.whole_error:.1e}"
                f"  eager {row.eager_error:.1e}  {row.failed} above {TOLERANCE:.0e}"
                f"  {'ok' if row.passed else 'FAILED'}  {row.seconds} s",
                flush=True,
            )
    if options.json:
        print(encode_json({"tolerance": TOLERANCE, "rows": rows}).decode())
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
