"""Every decoder that meets bytes from outside. A new one: a line in the `TARGETS` of a `*_targets` module.

`tests/wire/test_fuzz_registry.py` looks through the product for public functions named as decoders are, and
fails for one that no target covers and `NOT_DECODERS` does not name.
"""

from __future__ import annotations

from importlib import import_module

from tests.fuzz.target import Target

MODULES = ("wire_targets", "document_targets", "model_targets")
SLOW_MODULES = ("model_targets",)
"""They import torch."""

NOT_DECODERS = {
    "orchestrator.core.nsa.load_score": "a score of load",
    "orchestrator.core.cluster_stages.load_failed": "an event",
    "orchestrator.core.cluster_stages.load_timed_out": "an event",
    "deploy.cli.files.read_file": "reads a file, and gives its bytes to a decoder",
    "deploy.experiments.peers.drivers.stage.load_stage": "a file that the same run wrote",
    "deploy.experiments.peers.usage.read_usage": "reads what the kernel says",
    "shared.bus.tcp_info.parse": "reads what the kernel says",
}


def targets(modules: tuple[str, ...] = MODULES) -> dict[str, Target]:
    """The targets of `modules`, by name."""
    found: dict[str, Target] = {}
    for module in modules:
        for target in import_module(f"tests.fuzz.{module}").TARGETS:
            assert target.name not in found, f"two targets named {target.name}"
            found[target.name] = target
    return found
