"""Write the model to files, once, for all systems of a comparison: `python -m ... GIVEN`.

Run where AMP4EC is installed. GIVEN is JSON: `model`, the CPU `shares` that the peers' stages have between
them, and two paths. `files` becomes a folder with the weights (`weights.safetensors`, which AMP4EC is told to
serve), a module for each stage and one for the whole model, inputs, and the original module's answers to
them, computed before anything was folded; `stages` a file with the cuts and the share of each stage.

The cuts are not AMP4EC's, which balance its own kernels and messages, but those that balance these modules by
their own times: with ours the peers had one stage that was too large for its share.
"""

from __future__ import annotations

import itertools
import json
import pickle
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.fx import GraphModule, Interpreter, Node, symbolic_trace
from torch.fx.passes.split_module import split_module
from torch.nn.utils.fusion import fuse_conv_bn_eval

from orchestrator.models import zoo
from orchestrator.models.importer import import_torchvision
from orchestrator.models.reference import smooth_images
from shared.errors import ModelError

SAMPLES = 8
_TIMED_RUNS = 30
_TIE = 0.03
"""Plans that timing cannot tell apart; of these the one that sends least, for no peer sends for so little."""


def weigh(model: str, files: Path) -> None:
    """Write `weights.safetensors`, `inputs.npy` and `answers.npy` of `model` with random weights."""
    files.mkdir(parents=True, exist_ok=True)
    module = zoo.build(model, "none", seed=0).module
    safetensors.torch.save_file(module.state_dict(), files / "weights.safetensors")
    inputs = smooth_images((SAMPLES, 3, 224, 224), torch.Generator().manual_seed(1))
    with torch.inference_mode():
        answers = np.stack([module(one[None]).numpy() for one in inputs])
    np.save(files / "inputs.npy", inputs.numpy())
    np.save(files / "answers.npy", answers)


def cut(model: str, files: Path, cuts: Sequence[int]) -> None:
    """Write `whole.pt` and `stage-K.pt`, cut before the given blocks of AMP4EC's own count.

    Raises:
        ModelError: a block has no module of its own to cut before.
    """
    whole = _whole(model, files)
    torch.save(whole, files / "whole.pt")
    blocks = _blocks(model, files)
    heads = [blocks[index] for index in cuts]
    stages = split_module(whole, whole, _by_stage(whole, heads))
    for index in range(len(heads) + 1):
        torch.save(getattr(stages, f"submod_{index}"), files / f"stage-{index}.pt")


def balance(
    model: str, files: Path, shares: Sequence[float]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The cuts, and the share of each stage, with which the slowest stage is quickest, or nearly so.

    A stage takes the time of its operators on one thread, and of pickling what comes and what goes: the least
    that any of the peers does to send a tensor.
    """
    torch.set_num_threads(1)
    whole = _whole(model, files)
    image = torch.from_numpy(np.load(files / "inputs.npy")[:1])
    with torch.inference_mode():
        timed = _Timed(whole)
        for _ in range(_TIMED_RUNS):
            timed.run(image.contiguous(memory_format=torch.channels_last))
    nodes = list(whole.graph.nodes)
    at = {node.target: index for index, node in enumerate(nodes) if node.op == "call_module"}
    begins = {
        block: at[name] for block, name in enumerate(_blocks(model, files)) if block and name in at
    }
    spent_s = [0.0, *itertools.accumulate(timed.seconds(node) for node in nodes)]
    crossing_s = {block: timed.crossing_s(nodes[:begin]) for block, begin in begins.items()}

    def slowest_s(cuts: Sequence[int], order: Sequence[float]) -> float:
        edges = [0, *(begins[cut] for cut in cuts), len(nodes)]
        moved_s = [0.0, *(crossing_s[cut] for cut in cuts), 0.0]
        return max(
            (spent_s[end] - spent_s[begin] + moved_s[stage] + moved_s[stage + 1]) / share
            for stage, (begin, end, share) in enumerate(
                zip(edges[:-1], edges[1:], order, strict=True)
            )
        )

    plans = list(
        itertools.product(
            itertools.combinations(sorted(begins), len(shares) - 1), itertools.permutations(shares)
        )
    )
    limit_s = (1 + _TIE) * min(slowest_s(*plan) for plan in plans)
    return min(
        (plan for plan in plans if slowest_s(*plan) <= limit_s),
        key=lambda plan: sum(crossing_s[cut] for cut in plan[0]),
    )


class _Timed(Interpreter):
    """Runs a module node by node, and keeps what each took and gave."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self._took_s: defaultdict[Node, list[float]] = defaultdict(list)
        self._given: dict[Node, Any] = {}

    def run_node(self, node: Node) -> Any:
        """See `Interpreter`."""
        began = time.perf_counter()
        given = super().run_node(node)
        self._took_s[node].append(time.perf_counter() - began)
        self._given[node] = given
        return given

    def seconds(self, node: Node) -> float:
        """The median of its runs."""
        return statistics.median(self._took_s[node])

    def crossing_s(self, before: Sequence[Node]) -> float:
        """What it takes to pickle, or to unpickle, what later nodes need of these."""
        inside = set(before)
        crossing = [
            self._given[node].numpy()
            for node in before
            if any(user not in inside for user in node.users)
        ]
        took_s = []
        for _ in range(_TIMED_RUNS):
            began = time.perf_counter()
            pickle.loads(pickle.dumps(crossing))  # noqa: S301 - made here, a moment ago
            took_s.append((time.perf_counter() - began) / 2)
        return statistics.median(took_s)


def _whole(model: str, files: Path) -> GraphModule:
    """The model for PyTorch on a CPU: folded, channels-last."""
    built = zoo.build(model, str(files / "weights.safetensors"), seed=0)
    return _folded(built.module).to(memory_format=torch.channels_last)


def _blocks(model: str, files: Path) -> list[str]:
    """The names of AMP4EC's blocks, which are those of the modules that they begin with."""
    manifest = import_torchvision(model, weights=files / "weights.safetensors").manifest
    return [block.name for block in manifest.blocks]


def _folded(module: torch.nn.Module) -> GraphModule:
    """The module with each BatchNorm folded into the convolution before it."""
    traced = symbolic_trace(module)
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        norm, source = traced.get_submodule(node.target), node.args[0]
        if not isinstance(norm, torch.nn.BatchNorm2d) or source.op != "call_module":
            continue
        layer = traced.get_submodule(source.target)
        if isinstance(layer, torch.nn.Conv2d) and len(source.users) == 1:
            traced.set_submodule(source.target, fuse_conv_bn_eval(layer, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    traced.eval()
    return traced


def _by_stage(whole: GraphModule, heads: Sequence[str]) -> Callable[[Node], int]:
    """For `split_module`: the stage of a node; a stage begins at the module that its block is named after."""
    stage, stages = 0, {}
    for node in whole.graph.nodes:
        if stage < len(heads) and node.op == "call_module" and node.target == heads[stage]:
            stage += 1
        stages[node.name] = stage
    if stage != len(heads):
        raise ModelError(
            "cannot cut there for the peers",
            expected="blocks that begin with a module of the model, in order",
            got=", ".join(heads),
        )
    return lambda node: stages[node.name]


def main() -> None:
    """See the module."""
    given: Mapping[str, Any] = json.loads(sys.argv[1])
    model, files = given["model"], Path(given["files"])
    weigh(model, files)
    cuts, shares = balance(model, files, given["shares"])
    cut(model, files, cuts)
    # The last one: where it is, all the others are.
    Path(given["stages"]).write_text(json.dumps({"cuts": cuts, "shares": shares}))


if __name__ == "__main__":
    main()
