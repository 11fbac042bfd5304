"""Profile a model on this machine: import it, time it, and look at its layers."""

from __future__ import annotations

from contextlib import closing

from deploy.library import ModelLibrary, Prepared, Step
from deploy.modelling import Modelling
from deploy.profile_layers import layers_of, time_layers
from deploy.profile_report import Made, ProfileReport
from edge_agent.probe import Probe
from edge_agent.runtimes import available_runtimes
from orchestrator.library import choose_runtime
from shared.errors import ArtifactError


def profile_model(model: str, how: Modelling, *, layers: bool, step: Step) -> ProfileReport:
    """The profile of a model as measured here with the runtime asked for, or the faster one.

    Args:
        model: a name, file or factory, as in `orchestrator.models.source`.
        how: how it is read and timed.
        layers: time each layer as well; some seconds of CPU.
        step: gets a line per step.

    Raises:
        ModelError: it cannot be had, traced, or given its weights.
        ConfigurationError: a runtime that is not installed here, or a file that makes no sense.
        StageError: no runtime can run it.
    """
    with closing(ModelLibrary()) as library:
        return report(prepare(library, model, how, step), how.runtime, layers=layers, step=step)


def prepare(library: ModelLibrary, model: str, how: Modelling, step: Step) -> Prepared:
    """See `ModelLibrary.prepare`."""
    return library.prepare(
        how.source(model),
        step,
        level=how.level,
        samples=how.calibrate,
        min_agreement=how.min_agreement,
        runtime=how.runtime,
        preprocess=how.preprocess,
    )


def report(prepared: Prepared, wanted: str, *, layers: bool, step: Step) -> ProfileReport:
    """The same for a model that is prepared already; `wanted` is a runtime's name or `auto`."""
    package, manifest = prepared.package, prepared.package.manifest
    runtime = choose_runtime(package, wanted, lambda: set(package.measured))
    seconds = None
    if layers:
        step(f"timing {len(manifest.graph.nodes)} layers with {runtime}")
        seconds = time_layers(
            manifest, _blobs(prepared), runtime, package.measured[runtime].block_seconds
        )
    hardware = Probe().hardware()
    made = Made(
        runtime=f"{runtime} {available_runtimes().get(runtime, '')}".rstrip(),
        machine=hardware.cpu_model or hardware.architecture,
        level=manifest.level.value,
        weights=manifest.weights.value,
        layers=tuple(layers_of(manifest, seconds)),
    )
    return ProfileReport(package.profile(runtime), made)


def _blobs(prepared: Prepared) -> dict[str, bytes]:
    """The weights by digest; they lie in the library's store, pinned."""
    found = {}
    for blob in prepared.package.weights:
        path = prepared.store.path(blob.digest)
        if path is None:
            raise ArtifactError("a weight went from the cache", expected=blob.digest, got="nothing")
        found[blob.digest] = path.read_bytes()
    return found
