"""What `amp4ec infer` refuses before anything is asked of a cluster."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from deploy.cli.app import cli
from shared.errors import ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name what to run MODEL on"),
        (["--camera", "x.mp4", "--watch", "."], "exclude each other"),
        (["--camera", "x.mp4", __file__], "exclude each other"),
        (["--watch", ".", "--fps", "3"], "--fps goes with --camera"),
        (["--watch", ".", "--policy", "lossless"], "--policy goes with --camera"),
        (["--camera", "x.mp4", "--existing"], "--existing goes with --watch"),
        (["--camera", "x.mp4", "--keep", "3"], "--keep goes with --annotate"),
        (["--watch", ".", "--annotate", "."], "answered again"),
        (["--watch", "/no/such/folder"], "does not exist"),
        (["--camera", "x.mp4", "--fps", "0"], "0<x<=1000"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["infer", "m", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("\u2502", "").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--camera", "/no/such/file.mp4"], "there is no file"),
        (["--camera", __file__], "is no video that can be read"),
        (["--watch", ".", "--annotate", __file__], "--annotate"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_had(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["infer", "m", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, ConfigurationError)
        assert words in str(result.exception)
    else:  # refused by the option itself
        assert result.exit_code == 2
        assert words in result.output
