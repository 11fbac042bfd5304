"""Models imported and timed on this machine, kept on disk: serving one again takes a moment and no torch.

An entry is found by all that it depends on: the model (the zoo's by name, files by their content, what a
factory makes by what it became), the weights (a file by its content), the level with its samples, the code
that imports and times, the versions of what that stands on, and this machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import deploy.exactness
import deploy.profile
import deploy.profile_cuts
import edge_agent.runtimes
import orchestrator.models
import shared.compression
from deploy.exactness import Import, exact_model
from deploy.levels import MIN_AGREEMENT, check_agreement, check_level
from edge_agent.calibration import CalibrationCache, calibrate, default_calibration_dir
from edge_agent.probe import Probe
from edge_agent.runtimes import available_runtimes, int8_runtimes
from orchestrator.models.source import DEFAULT, NONE, ModelSource, SourceKind
from shared.artifact_store import ArtifactStore
from shared.codec import decode_json, encode_json
from shared.compression import COMPRESSIONS
from shared.errors import Amp4ecError, ArtifactError, ConfigurationError, ModelError, ProtocolError
from shared.graph import Kernels
from shared.manifest import Level
from shared.messages import Digest
from shared.messages.node import Calibration, Hardware
from shared.messages.stage import Blob
from shared.package import Measured, ModelPackage, read_package
from shared.transform import IMAGENET, Transform

CACHE_BYTES = 8 * 1024**3
_LIBRARIES = ("torch", "torchvision", "safetensors", "pillow", "numpy", "onnx", "onnxruntime")

Step = Callable[[str], None]


def default_directory() -> Path:
    """`amp4ec/models` below the user's cache directory (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "amp4ec" / "models"


@dataclass(frozen=True, slots=True)
class _Entry:
    """What an index file says: the package of an imported model, before a name or labels are given."""

    package: Digest


@dataclass(frozen=True, slots=True)
class _How:
    """How far a model is optimised; the transform is that of samples, which O2 depends on."""

    level: str
    samples: tuple[Path, ...] = ()
    transform: Transform | None = None
    kernels: Kernels | None = None

    @property
    def quantises(self) -> bool:
        return self.level == Level.O2

    def key(self) -> tuple[str, ...]:
        """All of it that a package depends on."""
        if not self.quantises:
            return (self.level,) if self.kernels is None else (self.level, self.kernels.value)
        from deploy.samples import samples_digest

        return (self.level, samples_digest(self.samples), repr(self.transform))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be uploaded: everything that `blobs` names lies in `store`, pinned."""

    package: ModelPackage
    manifest: Blob
    store: ArtifactStore


class ModelLibrary:
    """The models prepared on this machine. Use with `with`: leaving lets go of what was prepared."""

    def __init__(self, directory: Path | None = None) -> None:
        """Raises ArtifactError when the directory cannot be used."""
        self.directory = directory or default_directory()
        self.store = ArtifactStore(self.directory / "blobs", CACHE_BYTES)
        self._hardware = Probe().hardware()

    def close(self) -> None:
        """Let the cache evict what was prepared."""
        self.store.close()

    def prepare(
        self,
        source: ModelSource,
        step: Step,
        *,
        level: str = "O1",
        samples: Sequence[Path] = (),
        min_agreement: float = MIN_AGREEMENT,
        runtime: str = "auto",
        preprocess: str | None = None,
        labels: Path | None = None,
        kernels: Kernels | None = None,
    ) -> Prepared:
        """The model as it shall be served; imports and times it unless that was done before.

        Takes seconds of CPU the first time: call it off the event loop.

        Args:
            source: where the model comes from, and what it is called.
            step: gets a line per step.
            level: how far the graph is optimised, as in `shared.manifest.Level`.
            samples: for level O2, files and folders of what the model will see.
            min_agreement: refuse O2 below this; see `shared.manifest.Quantisation`.
            runtime: the runtime to time it with, or `auto`: all that are installed here.
            preprocess: how images become tensors, as in `read_transform`; None: the model's own transform.
            labels: a file as in `read_labels`; None: the model's own.
            kernels: what the runtime may compute with; None: the fastest that keep the promise. Plain ones
                are for comparisons, with torch: the model as its author wrote it.

        Raises:
            ModelError: it cannot be had, traced, or given its weights, or agrees too little with O1.
            ConfigurationError: a file of labels, of a transform or of samples that makes no sense, or flags
                that contradict each other.
            StageError: no runtime is installed here to time it with.
            ArtifactError: the cache cannot be written.
        """
        transform = None if preprocess is None else read_transform(preprocess)
        names = None if labels is None else read_labels(labels)
        check_level(level, samples, runtime)
        how = _How(level, _files(samples), transform, kernels)
        package = self._imported(source, how, runtime, step)
        # After it was timed and kept: asked again with a lower limit, it is there
        check_agreement(package.manifest, min_agreement)
        manifest = replace(package.manifest, model=source.name)
        if transform is not None:
            manifest = replace(manifest, preprocess=transform)
        if names is not None:
            manifest = replace(manifest, labels=names)
        package = replace(package, manifest=manifest)
        data = package.to_bytes()
        blob = Blob(digest=self.store.put(data), size=len(data))
        for digest in (blob.digest, *(weight.digest for weight in package.weights)):
            if self.store.pin(digest) is None:
                raise ArtifactError(
                    "a part of the model went from the cache meanwhile; serve it again",
                    expected=digest,
                    got="nothing",
                )
        return Prepared(package, blob, self.store)

    def _imported(self, source: ModelSource, how: _How, runtime: str, step: Step) -> ModelPackage:
        runtimes = self._runtimes(runtime, how.level)
        level = how.key()
        content = _content(source)
        if content is not None:
            found = self._find(self._index(content, level, runtimes))
            if found is not None:
                step(f"{source.reference} was imported and timed here before")
                return found
        # Before the model, so that what the runtime takes in memory is measured without it.
        calibrations = {
            name: self._calibration(name, version, step) for name, version in runtimes.items()
        }
        step(f"importing {source.reference}, weights {source.weights}")
        from orchestrator.models.resolve import open_source

        import_model = open_source(source, Level.O1 if how.quantises else how.level)
        if how.kernels is not None:
            import_model = _always(import_model, how.kernels)
        if content is None:
            # What a factory makes is known when it is made; the weights are in there by their digests.
            made = encode_json(import_model(Kernels.FAST).manifest)
            content = (source.kind.value, hashlib.sha256(made).hexdigest())
            found = self._find(self._index(content, level, runtimes))
            if found is not None:
                step(f"what {source.reference} made was timed here before")
                return found
        exact = exact_model(import_model, runtimes, step)
        if exact.imported.manifest.whole:
            step(f"served whole: {exact.imported.manifest.whole}")
        manifest, blobs = exact.imported.manifest, exact.imported.blobs
        if how.quantises:
            from deploy.quantising import quantise_model
            from deploy.samples import read_samples

            transform = how.transform or manifest.preprocess
            given = read_samples(how.samples, manifest.graph.inputs, transform)
            quantised = quantise_model(manifest, blobs, given, step)
            manifest, blobs = quantised.manifest, quantised.blobs
        measured: dict[str, Measured] = {}
        for name in exact.runtimes:
            step(f"timing {len(manifest.blocks)} blocks with {name}")
            measured[name] = deploy.profile.measure(manifest, blobs, name, calibrations[name])
        if manifest.cuts:
            ways = len(COMPRESSIONS) - 1
            step(f"trying {ways} ways to send tensors at {len(manifest.cuts)} cuts")
            cuts = deploy.profile_cuts.measure_cuts(
                manifest, blobs, min(measured), exact.imported.references[-1].inputs
            )
            manifest = replace(manifest, cuts=cuts)
        weights = tuple(
            Blob(digest=self.store.put(data), size=len(data)) for data in blobs.values()
        )
        package = ModelPackage(manifest=manifest, measured=measured, weights=weights)
        self._keep(self._index(content, level, runtimes), package)
        return package

    def _runtimes(self, wanted: str, level: str) -> dict[str, str]:
        available = available_runtimes()
        if level == Level.O2:
            able = int8_runtimes()
            available = {name: version for name, version in available.items() if name in able}
            if not available:
                raise ConfigurationError(
                    "level O2 needs a runtime for int8 graphs here, to take ranges and to time the model;"
                    " pip install 'amp4ec[onnx]'",
                    expected=" | ".join(able),
                    got="none",
                )
        if wanted == "auto":
            if not available:
                raise ConfigurationError(
                    "no runtime is installed here to time the model with; "
                    "pip install 'amp4ec[orchestrator]'"
                )
            return available
        if wanted not in available:
            raise ConfigurationError(
                f"runtime {wanted!r} is not installed here",
                expected=", ".join(["auto", *available]),
                got=wanted,
            )
        return {wanted: available[wanted]}

    def _calibration(self, runtime: str, runtime_version: str, step: Step) -> Calibration:
        cache = CalibrationCache(default_calibration_dir())
        found = cache.get(runtime, runtime_version, self._hardware)
        if found is None:
            step(f"timing this machine with {runtime}")
            found = calibrate(runtime)
            cache.put(runtime, runtime_version, self._hardware, found)
        return found

    def _index(
        self, content: tuple[str, ...], level: tuple[str, ...], runtimes: dict[str, str]
    ) -> Path:
        """Where the entry of a model with this content is, if there is one."""
        parts = (content, level, sorted(runtimes.items()), _code(), _versions())
        key = hashlib.sha256(repr((*parts, _machine(self._hardware))).encode()).hexdigest()
        return self.directory / "index" / key

    def _find(self, index: Path) -> ModelPackage | None:
        """The package of an index file, when all of it is still here and intact."""
        try:
            entry = decode_json(index.read_bytes(), _Entry)
            path = self.store.path(entry.package)
            package = None if path is None else read_package(path.read_bytes())
        except (OSError, Amp4ecError):  # never written, evicted, or of another time: made anew
            return None
        if package is None or any(self.store.path(b.digest) is None for b in package.weights):
            return None
        return package

    def _keep(self, index: Path, package: ModelPackage) -> None:
        entry = _Entry(package=self.store.put(package.to_bytes()))
        index.parent.mkdir(parents=True, exist_ok=True)
        temporary = index.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(encode_json(entry))
        temporary.replace(index)


def _always(import_model: Import, kernels: Kernels) -> Import:
    """`import_model` for these kernels, whatever is asked for."""
    return lambda _: import_model(kernels)


def _files(samples: Sequence[Path]) -> tuple[Path, ...]:
    if not samples:
        return ()
    from deploy.samples import sample_files

    return sample_files(samples)


def read_transform(text: str) -> Transform:
    """`imagenet`, or a JSON file with the fields of `shared.transform.Transform`.

    Raises:
        ConfigurationError: no such file, or no such fields.
    """
    if text == "imagenet":
        return IMAGENET
    try:
        return decode_json(Path(text).read_bytes(), Transform)
    except (OSError, ProtocolError) as error:
        raise ConfigurationError(
            f"--preprocess {text} cannot be used: {error}",
            expected='imagenet, or a JSON file with "resize", "crop", "mean", "std", "interpolation"',
        ) from error


def read_labels(path: Path) -> tuple[str, ...]:
    """A label per line, or a JSON list of labels.

    Raises:
        ConfigurationError: not text, or none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            return tuple(decode_json(text, list[str]))
    except (OSError, UnicodeDecodeError, ProtocolError) as error:
        raise ConfigurationError(
            f"--labels {path} cannot be used: {error}",
            expected="a label per line, or a JSON list of them",
        ) from error
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise ConfigurationError(f"--labels {path} is empty", expected="a label per line")
    return labels


def _content(source: ModelSource) -> tuple[str, ...] | None:
    """What decides about the model, weights included; None where only importing it tells.

    Raises:
        ModelError: a file cannot be read.
    """
    from orchestrator.models.resolve import files_beside

    shapes = tuple(str(shape) for shape in source.inputs)
    match source.kind:
        case SourceKind.TORCHVISION:
            weights = source.weights
            if weights not in (DEFAULT, NONE):
                expected = "default, none, or a .safetensors or state-dict file"
                weights = _file_digest("weights", Path(weights), expected)
            return (source.kind.value, source.reference, weights)
        case SourceKind.ONNX | SourceKind.EXPORTED:
            path = Path(source.reference)
            onnx = source.kind is SourceKind.ONNX
            expected = "an ONNX file" if onnx else "an archive that torch.export saved"
            digest = _file_digest("the model", path, expected)
            beside = files_beside(source)
            others = (_file_digest("weights", file, "the file beside it") for file in beside)
            return (source.kind.value, digest, *others, *shapes)
        case SourceKind.FACTORY:
            return None


def _file_digest(what: str, path: Path, expected: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"{what} {path} cannot be read: {error.strerror}", expected=expected, got=str(path)
        ) from error


def _code() -> str:
    """A digest of the code that decides what a package holds."""
    digest = hashlib.sha256()
    for package in (orchestrator.models, edge_agent.runtimes):
        for path in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            digest.update(path.read_bytes())
    here = Path(str(deploy.exactness.__file__)).parent
    for module in ("exactness", "profile", "profile_cuts", "quantising", "samples"):
        digest.update((here / f"{module}.py").read_bytes())
    digest.update(Path(str(shared.compression.__file__)).read_bytes())
    return digest.hexdigest()


def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, ""))
    return tuple(found)


def _machine(hardware: Hardware) -> tuple[str, str, int]:
    return (hardware.architecture, hardware.cpu_model, hardware.cores)
