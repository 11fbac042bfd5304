"""Log lines: one per event whatever is in it, for people and for programs, and never with a secret."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.log_lines import lines_of, parse_line, readable
from deploy.supervisor import child_environment, command
from shared import logs
from shared.bus.url import BrokerUrl

log = logs.get_log("shared.test")
HOSTILE = st.text(st.characters(codec=None), max_size=60)
"""With line breaks, escape sequences and lone surrogates."""


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A log of our own, and everything as before afterwards."""
    root, hook = logging.getLogger(), threading.excepthook
    level, show = root.level, warnings.showwarning
    stream = io.StringIO()
    logs.set_up("json", "debug", stream)
    yield stream
    logs.bind(process=None, node=None)
    assert logs._handler is not None
    root.removeHandler(logs._handler)
    logs._handler = None
    root.setLevel(level)
    for name in logs.OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    threading.excepthook = hook


def last(stream: io.StringIO) -> dict[str, Any]:
    document = json.loads(stream.getvalue().splitlines()[-1])
    assert isinstance(document, dict)
    return document


def test_a_json_line(stream: io.StringIO) -> None:
    logs.bind(process="agent", node="pi-1")
    log.info("stage ready", model="m", generation=3, load_s=0.123456789, path=Path("/a"), none=None)
    line = last(stream)
    at = datetime.fromisoformat(line.pop("time"))
    assert at.tzinfo == UTC
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=5)
    assert line == {
        "level": "info",
        "logger": "shared.test",
        "event": "stage ready",
        "process": "agent",
        "node": "pi-1",
        "model": "m",
        "generation": 3,
        "load_s": 0.123457,
        "path": "/a",
        "none": None,
    }
    log.info("of another node", node="pi-2")
    assert last(stream)["node"] == "pi-2"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event=HOSTILE, fact=HOSTILE, level=st.sampled_from(["info", "error"]))
@pytest.mark.parametrize("form", ["json", "text"])
def test_nobody_writes_a_line_of_his_own(
    stream: io.StringIO, form: logs.Format, event: str, fact: str, level: str
) -> None:
    stream.seek(0)
    stream.truncate()
    logs.set_up(form, "debug", stream)
    getattr(log, level)(event, fact=fact, several=[fact, 1])
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text[:-1].isprintable() or form == "json"
    assert len(text.splitlines()) == 1 or form == "json"  # JSON leaves U+2028 as it is
    assert text.count("\n") == 1
    if form == "json":
        json.loads(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event=HOSTILE, fact=st.one_of(HOSTILE, st.floats(), st.integers(), st.none(), st.booleans()))
def test_read_again_it_is_what_people_would_have_seen(
    stream: io.StringIO, event: str, fact: object
) -> None:
    def written(form: logs.Format) -> str:
        stream.seek(0)
        stream.truncate()
        logs.set_up(form, "debug", stream)
        log.info(event, fact=fact)
        return stream.getvalue()[:-1]

    text, line = written("text"), written("json")
    half = any("\ud800" <= c <= "\udfff" for c in f"{event}{fact}")
    if not half:  # such a line is kept, escaped once more
        assert readable(line).split(" ", 1)[1] == text.split(" ", 1)[1]


def test_an_error_with_its_traceback(stream: io.StringIO) -> None:
    try:
        raise ValueError("seven\nlines")
    except ValueError as error:
        log.exception("it failed", error=error, job="j")
    assert stream.getvalue().count("\n") == 1
    line = last(stream)
    assert line["error"] == "seven\nlines"
    assert "test_logs.py" in line["traceback"]
    assert "ValueError" in readable(stream.getvalue().strip())
    logs.set_up("text", "debug", stream)
    try:
        raise KeyError("k")
    except KeyError:
        log.exception("again")
    assert "KeyError" in stream.getvalue()


def test_other_libraries_are_heard_from_warnings_on(stream: io.StringIO) -> None:
    logging.getLogger("urllib3").info("chatter")
    logging.getLogger("asyncio").debug("chatter")
    assert stream.getvalue() == ""
    log.debug("ours")
    assert last(stream)["event"] == "ours"
    logging.getLogger("urllib3").warning("%s pending", 3)
    assert (last(stream)["event"], last(stream)["logger"]) == ("3 pending", "urllib3")
    logs.set_level("error")
    before = stream.getvalue()
    log.warning("ours")
    logging.getLogger("urllib3").warning("theirs")
    assert stream.getvalue() == before


def test_a_thread_that_fails_is_in_the_log(stream: io.StringIO) -> None:
    def fail() -> None:
        raise OSError("no disk")

    thread = threading.Thread(target=fail, name="writer")
    thread.start()
    thread.join()
    line = last(stream)
    assert (line["level"], line["thread"]) == ("error", "writer")
    assert "no disk" in line["traceback"]


def test_a_password_is_not_in_the_log(stream: io.StringIO) -> None:
    log.info("connected", broker=BrokerUrl.parse("mqtts://ann:hunter2@broker.local"))
    assert "ann" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_what_is_no_line_of_ours_stays_as_it_is() -> None:
    for line in ("", "1700000000: mosquitto", "{", "{}", '{"time": 1, "event": "e"}', "[1]"):
        assert parse_line(line) is None
        assert readable(line) == line


@given(st.lists(st.text(max_size=20)), st.integers(1, 9))
def test_lines_come_whole_from_pieces(written: list[str], size: int) -> None:
    data = "\n".join(written).encode()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert "\n".join(lines_of(pieces)) == data.decode().removesuffix("\n")


def failing(tmp_path: Path, *flags: str) -> list[str]:
    """What an orchestrator prints whose state cannot be where it shall."""
    (tmp_path / "file").touch()
    arguments = [
        "orchestrator",
        "--broker",
        "127.0.0.1:1",
        "--state-dir",
        str(tmp_path / "file" / "x"),
    ]
    ended = subprocess.run(
        command(*arguments, *flags),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    return ended.stderr.splitlines()


def test_a_service_ends_with_a_line_of_its_log(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in failing(tmp_path)]
    assert (lines[-1]["level"], lines[-1]["process"]) == ("error", "orchestrator")
    assert str(tmp_path / "file") in lines[-1]["error"]
    assert failing(tmp_path, "--log-format", "text")[-1].startswith("error: ")


def test_on_a_terminal_people_are_spoken_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ours, theirs = pty.openpty()
    arguments = [
        "orchestrator",
        "--broker",
        "10.0.0.1:1",
        "--state-dir",
        str(tmp_path / "file" / "x"),
    ]
    done = subprocess.run(
        command(*arguments), env=child_environment(), stderr=theirs, timeout=60, check=False
    )
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode != 0
    first, *_, error = text.splitlines()
    assert " warning deploy.cli.openness: plain MQTT" in first
    assert "{" not in first
    assert error.startswith("error: ")
