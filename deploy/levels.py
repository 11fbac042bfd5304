"""Optimisation levels as somebody asks for them: what level O2 needs beside the model. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_agent.runtimes import int8_runtimes
from shared.errors import ConfigurationError, ModelError
from shared.manifest import Level, Manifest, Quantisation

MIN_AGREEMENT = 0.9
"""Unless somebody says otherwise: of held-out samples, so many have the same class first at O2 as at O1."""
AUTO = "auto"


def check_level(level: str, samples: Sequence[Path], runtime: str) -> None:
    """Refuse flags that contradict each other.

    Raises:
        ConfigurationError: no such level; O2 without samples or with a runtime that has no int8 operators, or
            samples without O2.
    """
    if level not in set(Level):
        raise ConfigurationError(
            f"--level {level}: there is no such level", expected=" | ".join(Level), got=level
        )
    if level != Level.O2:
        if samples:
            raise ConfigurationError(
                "--calibrate is for --level O2; other levels need no samples",
                expected="--level O2, or no --calibrate",
                got=f"--level {level}",
            )
        return
    if not samples:
        raise ConfigurationError(
            "--level O2 takes its scales from samples of what the model will see: add --calibrate",
            expected="--calibrate with a folder or files: images, or .npz files of the model's inputs",
            got="none",
        )
    able = int8_runtimes()
    if runtime not in (AUTO, *able):
        raise ConfigurationError(
            f"--runtime {runtime} runs no int8 graphs (--level O2)",
            expected=" | ".join((AUTO, *able)),
            got=runtime,
        )


def describe_quantisation(found: Quantisation) -> str:
    """How well level O2 answers, for people."""
    return (
        f"int8 agrees with O1 on {found.agreement_ratio:.1%} of {found.held_out} held-out samples,"
        f" outputs off by up to {found.max_relative_error:.1%}"
    )


def check_agreement(manifest: Manifest, least: float) -> None:
    """Refuse a model at level O2 that answers too differently from O1.

    Raises:
        ModelError: it does; says by how much.
    """
    found = manifest.quantisation
    if found is not None and found.agreement_ratio < least:
        raise ModelError(
            f"{manifest.model} at level O2 is refused: {describe_quantisation(found)}. Calibrate with more"
            " and more typical samples, serve it at level O1, or lower --min-agreement",
            expected=f"agreement of at least {least:g}",
            got=f"{found.agreement_ratio:.4g}",
        )
