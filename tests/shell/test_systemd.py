"""The agent's unit, as systemd itself reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.services import agent_command

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = SYSTEMD / "amp4ec-agent.service"
PROGRAM = "/opt/amp4ec/bin/amp4ec"


def analyze(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze` on the unit, with a program that exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, sys.executable))
    return subprocess.run(
        ["systemd-analyze", *words, unit], capture_output=True, text=True, check=False
    )


def test_systemd_takes_the_unit_without_a_word(tmp_path: Path) -> None:
    done = analyze(tmp_path, "verify")
    # Of other units on this machine it may complain as well.
    assert UNIT.name not in done.stderr
    assert done.returncode == 0 or "amp4ec" not in done.stderr


def test_it_is_closed_in_as_far_as_an_agent_can_be(tmp_path: Path) -> None:
    done = analyze(tmp_path, "security", "--offline=yes", "--threshold=20")
    assert done.returncode == 0, done.stdout[-500:]


def test_what_is_started_is_the_agent_with_options_that_it_has() -> None:
    (line,) = [each for each in UNIT.read_text().splitlines() if each.startswith("ExecStart=")]
    program, command, *arguments = line.removeprefix("ExecStart=").split()
    assert (program, command) == (PROGRAM, "agent")
    flags = {flag for parameter in agent_command.params for flag in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= flags


def test_the_environment_file_sets_what_there_is() -> None:
    names = {f"AMP4EC_AGENT_{parameter.name}".upper() for parameter in agent_command.params}
    for line in (SYSTEMD / "agent.env").read_text().splitlines():
        name, equals, _ = line.removeprefix("#").partition("=")
        if equals and name.isupper():
            assert name in {*names, "AMP4EC_BROKER"}
