"""The systems of the comparison, how each is started, and what stands for it in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from broker.launcher import find_mosquitto
from deploy.experiments.peers.environments import Environment

MODEL = "mobilenet_v2"
PAPER_SHARES = (1.0, 0.6, 0.4)
"""CPU of the paper's three devices; the settings' scale multiplies them."""
_TORCH, _NUMPY = "torch==2.13.0", "numpy==2.4.6"
_OURS = Environment("amp4ec")
_PYTORCH = Environment("torch", (_TORCH, _NUMPY))
_RAY = Environment("ray", ("ray[serve]==2.60.0", _TORCH, _NUMPY))
_AIKO = Environment("aiko", ("aiko_services==0.7", _TORCH, _NUMPY))
_QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all systems of a run have in common."""

    directory: Path
    shares: tuple[float, ...]
    window: int

    @property
    def files(self) -> Path:
        """The exported model."""
        return self.directory / "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """`limits`: whether its stages join cgroups of ours, one cgroup of their sum, or it limits them itself.

    `variables` are of its process environment. `way` says in a line how it is used, for the table's foot.
    """

    name: str
    driver: str
    environment: Environment
    way: str
    limits: Literal["stages", "sum", "own"] = "stages"
    options: Callable[[Bench], dict[str, Any]] = lambda _: {}
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def staged(self) -> bool:
        """Whether it runs the model in stages."""
        return self.limits != "sum"

    @property
    def module(self) -> str:
        """The driver, as `python -m` takes it."""
        return f"{__package__}.drivers.{self.driver}"

    def shares(self, bench: Bench) -> tuple[float, ...]:
        """CPU of each cgroup that is made for it."""
        match self.limits:
            case "stages":
                return bench.shares
            case "sum":
                return (sum(bench.shares),)
            case "own":
                return ()


def _ours(runtime: str) -> System:
    def options(bench: Bench) -> dict[str, Any]:
        return {
            "model": MODEL,
            "runtime": runtime,
            "shares": bench.shares,
            "directory": str(bench.directory / f"amp4ec-{runtime}"),
        }

    return System(
        name=f"amp4ec-{runtime}",
        driver="ours",
        environment=_OURS,
        way=f"broker, orchestrator, three agents, {runtime} stages; three stages asked for",
        limits="own",
        options=options,
    )


def _staged(**more: Any) -> Callable[[Bench], dict[str, Any]]:
    return lambda bench: {"stages": len(bench.shares), "window": bench.window, **more}


def _on_mosquitto(bench: Bench) -> dict[str, Any]:
    return {"stages": len(bench.shares), "mosquitto": str(find_mosquitto())}


SYSTEMS = (
    _ours("torch"),
    _ours("onnxruntime"),
    System(
        name="gloo",
        driver="gloo",
        environment=_PYTORCH,
        # One image a step took 1.2 times the CPU of the stages.
        way="torch.distributed.pipelining: PipelineStage, ScheduleGPipe.eval, up to four images a step",
        options=_staged(microbatches=4),
    ),
    System(
        name="ray-actors",
        driver="ray_actors",
        environment=_RAY,
        way="an actor a stage, object references in between, restarts and retries without limit",
        options=_staged(),
        variables=_QUIET_RAY,
    ),
    System(
        name="ray-serve",
        driver="ray_serve",
        environment=_RAY,
        way="a deployment a stage, responses handed on, RAY_SERVE_THROUGHPUT_OPTIMIZED=1, no HTTP",
        options=_staged(),
        variables={**_QUIET_RAY, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
    System(
        name="aiko",
        driver="aiko",
        environment=_AIKO,
        way="Aiko Services: a pipeline process a stage, frames over Mosquitto as S-expressions",
        options=_on_mosquitto,
    ),
    System(
        name="alone",
        driver="alone",
        environment=_PYTORCH,
        way="one process, the whole model, the CPU of all three stages, images through a pipe",
        limits="sum",
    ),
)
