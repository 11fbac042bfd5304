"""Write the model to files, once, for all systems of a comparison: `python -m ... FILES CUTS`.

Run where AMP4EC is installed. FILES becomes a folder with the weights (`weights.safetensors`, which AMP4EC is
told to serve), a module for each stage and one for the whole model, inputs, and the original module's
answers to them, computed before anything was folded. CUTS are the blocks at which the planner cut, in JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch.fx import GraphModule, Node, symbolic_trace
from torch.fx.passes.split_module import split_module
from torch.nn.utils.fusion import fuse_conv_bn_eval

from orchestrator.models import zoo
from orchestrator.models.importer import import_torchvision
from orchestrator.models.reference import smooth_images
from shared.errors import ModelError

SAMPLES = 8


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
    built = zoo.build(model, str(files / "weights.safetensors"), seed=0)
    manifest = import_torchvision(model, weights=files / "weights.safetensors").manifest
    whole = _folded(built.module).to(memory_format=torch.channels_last)
    torch.save(whole, files / "whole.pt")
    heads = [manifest.blocks[index].name for index in cuts]
    stages = split_module(whole, whole, _by_stage(whole, heads))
    for index in range(len(heads) + 1):
        torch.save(getattr(stages, f"submod_{index}"), files / f"stage-{index}.pt")


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
    given = json.loads(sys.argv[1])
    files = Path(given["files"])
    if not (files / "answers.npy").is_file():
        weigh(given["model"], files)
    if given["cuts"]:
        cut(given["model"], files, given["cuts"])


if __name__ == "__main__":
    main()
