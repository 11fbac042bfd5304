"""The file that says what is served, when the broker has forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.served_file import ServedFile
from shared.messages.model import ModelState


def state(generation: int) -> ModelState:
    return ModelState(state="serving", model="m", generation=generation, manifest="0" * 64)


def test_what_was_written_is_read_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "served.json"
    file = ServedFile(path, "root")
    assert file.read() == {}
    file.write("m", state(3))
    file.write("n", state(1))
    file.write("n", None)
    assert ServedFile(path, "root").read() == {"m": state(3)}
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_what_was_there_stays_when_another_is_added(tmp_path: Path) -> None:
    ServedFile(tmp_path / "served.json", "root").write("m", state(3))
    later = ServedFile(tmp_path / "served.json", "root")
    later.read()
    later.write("n", state(1))
    assert set(ServedFile(tmp_path / "served.json", "root").read()) == {"m", "n"}


def test_mere_measurements_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "served.json"
    file = ServedFile(path, "root")
    file.write("m", state(3))
    path.unlink()
    file.write("m", replace(state(3), reason="measured again"))
    assert not path.exists()
    file.write("m", state(4))
    assert ServedFile(path, "root").read() == {"m": state(4)}


def test_another_cluster_s_file_says_nothing_of_ours(tmp_path: Path) -> None:
    ServedFile(tmp_path / "served.json", "theirs").write("m", state(3))
    assert ServedFile(tmp_path / "served.json", "ours").read() == {}


def test_a_damaged_file_and_a_disk_that_fails_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "served.json"
    path.write_bytes(b'{"root": 3')
    file = ServedFile(path, "root")
    assert file.read() == {}
    file.write("m", state(1))
    assert ServedFile(path, "root").read() == {"m": state(1)}
    nowhere = ServedFile(tmp_path / "none" / "served.json", "root")
    nowhere.write("m", state(1))
    assert nowhere.read() == {}


def test_a_file_of_before_another_led_says_nothing(tmp_path: Path) -> None:
    """Under term 4 the model may have been stopped: only we do not know."""
    path = tmp_path / "served.json"
    ServedFile(path, "root", term=3).write("m", state(3))
    assert ServedFile(path, "root", term=5, before=4).read() == {}
    assert ServedFile(path, "root", term=4, before=3).read() == {"m": state(3)}


def test_who_takes_over_makes_the_file_its_own_though_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "served.json"
    ServedFile(path, "root", term=3).write("m", state(3))
    taken = ServedFile(path, "root", term=4, before=3)
    taken.read()
    taken.settle()
    assert ServedFile(path, "root", term=5, before=4).read() == {"m": state(3)}
