"""The store of accepted jobs: what a killed orchestrator leaves, and a disk that fails."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import job_store
from orchestrator.job_store import JobStore, Key, SetAside, StoredAnswer
from shared.bus import Message, Properties


def job(number: int, **properties: object) -> Message:
    given = Properties(
        response_topic="r/x", correlation_data=b"c%d" % number, user=(("job", str(number)),)
    )
    changed = {name: getattr(given, name) for name in Properties.__dataclass_fields__} | properties
    return Message(
        f"model/m/infer-{number}", b"payload %d" % number, 1, properties=Properties(**changed)
    )


def answer(number: int, payload: bytes = b"{}") -> StoredAnswer:
    return StoredAnswer(("r/x", str(number)), payload, msgpack=False)


def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def rows(path: Path, table: str) -> int:
    """How many; none as long as there is no such table."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def opened(path: Path, **options: Any) -> tuple[JobStore, list[Message], dict[Key, StoredAnswer]]:
    store = JobStore(path, **options)
    recovered = store.open()
    return store, list(recovered.jobs), dict(recovered.answers)


def test_what_was_not_answered_is_found_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    store, jobs, answers = opened(path)
    assert (jobs, answers) == ([], {})
    for number in range(3):
        store.accepted(f"id-{number}", job(number))
    until(lambda: rows(path, "jobs") == 3)
    store.answered("id-1", answer(1, b'{"status":"ok"}'))
    until(lambda: rows(path, "jobs") == 2)
    # The process is killed here: nothing closes the store, another one opens the file.
    later, jobs, answers = opened(path)
    assert jobs == [job(0), job(2)]
    assert answers == {("r/x", "1"): answer(1, b'{"status":"ok"}')}
    later.close()
    store.close()


def test_recovered_jobs_are_gone_unless_accepted_anew(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    store, *_ = opened(path)
    store.accepted("old", job(1))
    store.close()
    store, jobs, _ = opened(path)
    assert jobs == [job(1)]
    store.accepted("new", jobs[0])
    store.close()
    store, jobs, _ = opened(path)
    assert jobs == [job(1)], "once, under its new id"
    store.close()


def test_the_last_beat_is_kept(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    assert store.open().beat == 0
    store.beat(41)
    store.beat(42)
    store.close()
    store = JobStore(tmp_path / "jobs.sqlite3")
    assert store.open().beat == 42
    store.close()


def test_the_term_of_its_leader_is_kept(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    assert store.open().term == 0
    store.leads(7)
    store.beat(3)
    store.close()
    store = JobStore(tmp_path / "jobs.sqlite3")
    recovered = store.open()
    assert (recovered.term, recovered.beat) == (7, 3)
    store.close()


def test_who_has_resigned_writes_no_more(tmp_path: Path) -> None:
    """The file may be the new leader's by now, and the jobs are."""
    path = tmp_path / "jobs.sqlite3"
    store, _, _ = opened(path, after_s=3600.0)
    store.accepted("a", job(1))
    store.close(resigned=True)
    store, jobs, _ = opened(path)
    assert jobs == []
    store.close()


def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    store, *_ = opened(path)
    store.accepted("a", job(1))
    store.close()
    assert rows(path, "jobs") == 1


def test_a_job_answered_within_its_group_is_never_written(tmp_path: Path) -> None:
    """Twice the same id would break the table's key, and a row left behind would run the job again."""
    path = tmp_path / "jobs.sqlite3"
    store, *_ = opened(path)
    for number in range(200):
        store.accepted(str(number), job(number))
        store.answered(str(number), None)
    store.close()
    assert rows(path, "jobs") == 0


def test_deadlines_go_on_while_nobody_runs(tmp_path: Path) -> None:
    path, now = tmp_path / "jobs.sqlite3", [1000.0]
    store, *_ = opened(path, clock=lambda: now[0])
    store.accepted("a", job(1, user=(("job", "1"), ("deadline_ms", "5000"))))
    store.accepted("b", job(2, expiry_s=3))
    store.accepted("c", job(3))
    store.close()
    now[0] += 2
    store, jobs, _ = opened(path, clock=lambda: now[0])
    left = [message.properties.user_value("deadline_ms") for message in jobs]
    assert left == ["3000.000", "1000.000", None]
    store.close()
    # Over, or the clock set back: still handed on, to be answered `deadline`, and never lengthened.
    for change, expected in (
        (100.0, ["0.001", "0.001", None]),
        (-500.0, ["5000.000", "3000.000", None]),
    ):
        store, *_ = opened(tmp_path / f"at{change}", clock=lambda: 1000.0)
        for number, message in enumerate(
            (job(1, user=(("deadline_ms", "5000"),)), job(2, expiry_s=3), job(3))
        ):
            store.accepted(str(number), message)
        store.close()
        store, jobs, _ = opened(tmp_path / f"at{change}", clock=lambda at=change: 1000.0 + at)
        assert [message.properties.user_value("deadline_ms") for message in jobs] == expected
        store.close()


def test_answers_expire_and_large_ones_are_not_kept(tmp_path: Path) -> None:
    path, now = tmp_path / "jobs.sqlite3", [1000.0]
    store, *_ = opened(path, clock=lambda: now[0], keep_s=60.0)
    store.answered("a", answer(1))
    store.close()
    now[0] += 30
    store, _, answers = opened(path, clock=lambda: now[0], keep_s=60.0)
    assert answers == {("r/x", "1"): answer(1)}
    store.answered("b", answer(2, b"x" * 100_000))
    store.answered("c", StoredAnswer(("r/x", b"3"), b"\x81", msgpack=True))
    store.close()
    now[0] += 40
    store, _, answers = opened(path, clock=lambda: now[0], keep_s=60.0)
    assert answers == {("r/x", b"3"): StoredAnswer(("r/x", b"3"), b"\x81", msgpack=True)}
    store.answered("d", answer(4))
    store.close()
    assert rows(path, "answers") == 2, "what is too old is deleted when others come"


def test_a_disk_that_fails_is_said_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path, said = tmp_path / "jobs.sqlite3", list[str]()
    store, *_ = opened(path, trouble=said.append)
    blocker = sqlite3.connect(path, isolation_level=None, timeout=0)
    with contextlib.closing(blocker):
        blocker.execute("DROP TABLE jobs")  # as a file that was put in its place would look
        store.accepted("a", job(1))
        until(lambda: said)
        store.accepted("b", job(2))
    # The table is made again with the next connection, and both jobs are written.
    until(lambda: rows(path, "jobs") == 2)
    store.close()
    assert len(said) == 1
    assert "jobs" in said[0]


def test_a_file_that_is_deleted_while_it_runs_is_said_and_made_again(tmp_path: Path) -> None:
    path, said = tmp_path / "jobs.sqlite3", list[str]()
    store, *_ = opened(path, trouble=said.append)
    store.accepted("a", job(1))
    until(lambda: rows(path, "jobs") == 1)
    for file in tmp_path.iterdir():
        file.unlink()
    store.accepted("b", job(2))
    until(lambda: said)
    until(lambda: path.exists() and rows(path, "jobs") == 1)
    store.close()
    assert len(said) == 1
    assert "gone" in said[0]


def test_a_full_disk_is_said_and_written_to_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said, room = tmp_path / "jobs.sqlite3", list[str](), [20]
    connect = job_store._connect

    def connect_in_little_room(path: Path) -> sqlite3.Connection:
        database = connect(path)
        database.execute(f"PRAGMA max_page_count={room[0]}")
        return database

    monkeypatch.setattr(job_store, "_connect", connect_in_little_room)
    store, *_ = opened(path, trouble=said.append)
    large = replace(job(1), payload=bytes(500_000))
    store.accepted("a", large)
    until(lambda: said)
    store.accepted("b", job(2))
    assert "full" in said[0]
    room[0] = 100_000
    until(lambda: rows(path, "jobs") == 2)
    store.close()
    assert len(said) == 1, "once per outage"


def test_a_damaged_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"not a database, and long enough to be read as one: " + os.urandom(4096))
    store, jobs, answers = opened(path)
    assert (jobs, answers) == ([], {})
    assert (tmp_path / "jobs.damaged").exists()
    store.accepted("a", job(1))
    store.close()
    assert rows(path, "jobs") == 1


def test_a_folder_that_is_not_there_stops_nothing(tmp_path: Path) -> None:
    said = list[str]()
    store, jobs, _ = opened(tmp_path / "none" / "jobs.sqlite3", trouble=said.append)
    assert jobs == []
    store.accepted("a", job(1))
    until(lambda: said)
    (tmp_path / "none").mkdir()
    until(
        lambda: (
            (tmp_path / "none" / "jobs.sqlite3").exists()
            and rows(tmp_path / "none" / "jobs.sqlite3", "jobs")
        )
    )
    store.close()


@pytest.mark.parametrize("close_first", [True, False])
def test_closing_one_that_was_never_opened(tmp_path: Path, *, close_first: bool) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    if not close_first:
        store.accepted("a", job(1))
    store.close()
    assert not (tmp_path / "jobs.sqlite3").exists()


def deadly(number: int, size_bytes: int = 10) -> SetAside:
    message = replace(job(number), payload=bytes(size_bytes))
    return SetAside(
        request_id=f"id-{number}", item_index=0, model="m", job=str(number), nodes=("a", "b"),
        message=message,
    )  # fmt: skip


def set_aside(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT request_id FROM set_aside ORDER BY number").fetchall()
    return [row[0] for row in found]


def test_what_nodes_died_of_is_kept_for_the_operator_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    store, *_ = opened(path)
    store.accepted("id-1", job(1))
    store.set_aside(deadly(1))
    store.answered("id-1", answer(1, b'{"status":"error"}'))
    until(lambda: store.num_set_aside == 1)
    store.close()
    store, jobs, answers = opened(path)
    assert (store.num_set_aside, jobs) == (1, [])
    assert answers[("r/x", "1")].payload == b'{"status":"error"}', "who asks again is told the same"
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        (row,) = database.execute(
            "SELECT model, job, nodes, topic, length(payload) FROM set_aside"
        ).fetchall()
    assert row == ("m", "1", "a b", "model/m/infer-1", 10)


def test_of_what_is_set_aside_the_newest_are_kept(tmp_path: Path) -> None:
    """A hundred, and 64 MiB; the newest of all however large it is."""
    path, mib = tmp_path / "jobs.sqlite3", 1 << 20
    store, *_ = opened(path)
    for number in range(103):
        store.set_aside(deadly(number))
    until(lambda: store.num_set_aside == 100)
    assert set_aside(path) == [f"id-{number}" for number in range(3, 103)]
    for number in range(200, 204):
        store.set_aside(deadly(number, 20 * mib))
    until(lambda: "id-203" in set_aside(path))
    assert set_aside(path) == [f"id-{number}" for number in (201, 202, 203)]
    store.set_aside(deadly(300, 65 * mib))
    store.close()
    assert set_aside(path) == ["id-300"]
