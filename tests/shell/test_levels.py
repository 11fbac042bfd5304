"""Optimisation levels as somebody asks for them: flags, the library, a package, and what an answer says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import library as library_module
from deploy.flags import ServeFlags
from deploy.levels import check_level
from deploy.library import ModelLibrary, Prepared
from orchestrator.library import choose_runtime, entry_of
from orchestrator.models.source import InputShape, ModelSource, parse_source
from shared.errors import ConfigurationError, ModelError
from shared.manifest import Level
from shared.messages.model import ServeOptions
from tests.fakes import shapes

SHAPE = (InputShape.parse(f"1x3x{shapes.EDGE}x{shapes.EDGE}"),)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write_samples(tmp_path_factory.mktemp("photos"), 48)


@pytest.fixture(scope="module")
def transform(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("transform") / "shapes.json"
    path.write_text(json.dumps(shapes.TRANSFORM))
    return str(path)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelLibrary]:
    library = ModelLibrary(tmp_path_factory.mktemp("models"))
    yield library
    library.close()


def source() -> ModelSource:
    return parse_source("tests.fakes.shapes:trained", inputs=SHAPE, name="shapes")


def prepare(
    library: ModelLibrary, photos: Path, transform: str, **options: object
) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    wanted: dict[str, object] = {"level": "O2", "samples": (photos,), "preprocess": transform}
    made = library.prepare(source(), said.append, **(wanted | options))  # type: ignore[arg-type]
    return made, said


def test_a_model_at_o2(opened: ModelLibrary, photos: Path, transform: str) -> None:
    prepared, said = prepare(opened, photos, transform)
    manifest = prepared.package.manifest
    assert manifest.level is Level.O2
    assert manifest.quantisation is not None
    assert manifest.quantisation.samples == 48
    assert manifest.quantisation.held_out == 16
    assert manifest.max_relative_error == manifest.quantisation.max_relative_error
    assert any("int8 agrees with O1 on" in line for line in said)
    # Nodes without the runtime cannot take its stages: there is nothing to plan them with.
    assert prepared.package.measured.keys() == {"onnxruntime"}
    assert choose_runtime(prepared.package, "auto", lambda: {"torch"}) == "onnxruntime"
    entry = entry_of(prepared.package, "d" * 64, ServeOptions(), "onnxruntime")
    assert (entry.level, entry.quantisation) == ("O2", manifest.quantisation)


def test_the_plan_is_told_of_fewer_bytes(
    opened: ModelLibrary, photos: Path, transform: str
) -> None:
    eight = prepare(opened, photos, transform)[0].package.profile("onnxruntime")
    plain = prepare(opened, photos, transform, level="O1", samples=())[0].package.profile(
        "onnxruntime"
    )
    assert all(b.bytes <= a.bytes / 4 for a, b in zip(plain.cuts, eight.cuts, strict=True))
    assert all(b.peak_bytes < a.peak_bytes for a, b in zip(plain.blocks, eight.blocks, strict=True))


def test_it_is_found_again_by_its_samples(
    opened: ModelLibrary, photos: Path, transform: str, tmp_path: Path
) -> None:
    prepare(opened, photos, transform)
    prepared, said = prepare(opened, photos, transform)
    assert "was timed here before" in said[-1]
    others = shapes.write_samples(tmp_path / "others", 20, seed=8)
    again, said = prepare(opened, others, transform)
    assert any("taking ranges" in line for line in said)
    assert again.manifest != prepared.manifest


def test_too_little_agreement_is_refused_before_and_after_it_is_kept(
    opened: ModelLibrary, photos: Path, transform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, _ = prepare(opened, photos, transform)
    worse = replace(prepared.package.manifest.quantisation, agreement_ratio=0.5)  # type: ignore[type-var]
    manifest = replace(prepared.package.manifest, quantisation=worse)
    package = replace(prepared.package, manifest=manifest)
    monkeypatch.setattr(ModelLibrary, "_find", lambda *_: package)
    with pytest.raises(
        ModelError, match=r"shapes at level O2 is refused.*--min-agreement"
    ) as error:
        prepare(opened, photos, transform, min_agreement=0.6)
    assert (error.value.expected, error.value.got) == ("agreement of at least 0.6", "0.5")
    assert prepare(opened, photos, transform, min_agreement=0.5)[0].package == package


def test_images_for_a_model_without_a_transform(opened: ModelLibrary, photos: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--preprocess imagenet\|FILE"):
        opened.prepare(source(), lambda _: None, level="O2", samples=(photos,))


def test_without_the_runtime_for_int8(
    opened: ModelLibrary, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "available_runtimes", lambda: {"torch": "2"})
    with pytest.raises(ConfigurationError, match=r"pip install 'amp4ec\[onnx\]'"):
        opened.prepare(source(), lambda _: None, level="O2", samples=(photos,))


@pytest.mark.parametrize(
    ("level", "samples", "runtime", "message"),
    [
        ("O3", (), "auto", r"no such level; expected O0 \| O1 \| O2; got O3"),
        ("O2", (), "auto", "add --calibrate"),
        ("O1", (Path(),), "auto", "--calibrate is for --level O2"),
        ("O2", (Path(),), "torch", r"runs no int8 graphs.*expected auto \| onnxruntime"),
    ],
)
def test_flags_that_contradict_each_other(
    level: str, samples: tuple[Path, ...], runtime: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_level(level, samples, runtime)


def test_flags_travel_to_a_child_process() -> None:
    flags = ServeFlags(level="O2", calibrate=(Path("a b"), Path("c")), min_agreement=0.85)
    arguments = flags.arguments()
    assert {"--level=O2", "--calibrate=a b", "--calibrate=c", "--min-agreement=0.85"} <= {
        *arguments
    }
    assert not any("agreement" in each for each in ServeFlags().arguments())
