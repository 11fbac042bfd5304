"""On disk: jobs that were accepted and not answered yet, the last answers, and jobs that nodes died of.

A job is in the broker's queue until its answer went out (`dispatcher.py`), and from its receipt on also here:
a broker that was killed may have lost its queue, and then the next orchestrator finds the job in this file.
Where the broker lived, its queue says better what was answered: it was told so right after each answer, and
this file a moment later. The answers are for who asks again, the deadly jobs for who wants to know why.

One thread writes, a group of changes per transaction, so that a slow disk never delays an answer. What was
answered soon after is never written: within 0.2 s that is every job of a cluster that keeps up, and the store
costs next to nothing; written at once, each job of 600 KB costs 0.7 ms of CPU. SQLite in WAL mode and
`synchronous=NORMAL`: a killed process loses nothing that was committed; a machine that loses power may lose
the last moments, and the broker's queue still has those.

A disk that is full or broken does not stop the jobs: it is said once per outage, and each is then as safe as
the broker's queue alone makes it. A file that is damaged is moved aside.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.bus import Message, Properties
from shared.codec import decode_msgpack, encode_msgpack
from shared.errors import ProtocolError
from shared.logs import get_log

log = get_log(__name__)

_MOST_ANSWERS = 10_000
_LARGEST_ANSWER_BYTES = 16 * 1024
"""A larger one (raw tensors, a batch) is computed again for who asks again after a restart."""
_MOST_SET_ASIDE = 100
_MOST_SET_ASIDE_BYTES = 64 * 1024 * 1024
_RETRY_S = 1.0
_BEAT, _TERM = 1, 2
"""The rows of the table `beats`."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    request_id TEXT PRIMARY KEY, received_at REAL, topic TEXT, payload BLOB, properties BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS beats (number INTEGER PRIMARY KEY, count INTEGER);
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, answered_at REAL, reply_to TEXT, job, msgpack INTEGER, payload BLOB
);
CREATE TABLE IF NOT EXISTS set_aside (
    number INTEGER PRIMARY KEY, at REAL, request_id TEXT, item INTEGER, model TEXT, job, nodes TEXT,
    topic TEXT, payload BLOB, properties BLOB
);
"""

Key = tuple[str, str | bytes]
"""Response topic and job: what makes two messages one job."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it was sent; `msgpack` tells how it is written."""

    key: Key
    payload: bytes
    msgpack: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an earlier orchestrator left: jobs without an answer, oldest first, and answers by job."""

    jobs: tuple[Message, ...] = ()
    answers: dict[Key, StoredAnswer] = field(default_factory=dict)
    term: int = 0
    """Under which it led."""
    beat: int = 0
    """The last count that the broker had acknowledged; see the topic `orchestrator/beat`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A request of which `nodes` died, one after the other, at its input `item_index`."""

    request_id: str
    item_index: int
    model: str
    job: str | bytes | None
    nodes: tuple[str, ...]
    message: Message


@dataclass(frozen=True, slots=True)
class _Job:
    """A job, and when it came: by wall time for who reads it later, by the monotonic clock for its age."""

    message: Message
    received_at: float
    since: float


@dataclass(slots=True)
class _Changes:
    """What a transaction will write."""

    jobs: dict[str, _Job] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    answers: list[tuple[float, StoredAnswer]] = field(default_factory=list)
    set_aside: list[tuple[float, SetAside]] = field(default_factory=list)
    beat: int = 0
    term: int = 0

    def __bool__(self) -> bool:
        return bool(
            self.jobs or self.gone or self.answers or self.set_aside or self.beat or self.term
        )

    def split(self, since: float) -> tuple[_Changes, dict[str, _Job]]:
        """What is to be written now, and the jobs that came after `since`, which may yet be answered."""
        young = {key: job for key, job in self.jobs.items() if job.since > since}
        old = {key: job for key, job in self.jobs.items() if key not in young}
        return _Changes(old, self.gone, self.answers, self.set_aside, self.beat, self.term), young

    def before(self, later: _Changes) -> _Changes:
        """These, which could not be written, and what came after them."""
        jobs = {key: job for key, job in self.jobs.items() if key not in later.gone} | later.jobs
        answers = (self.answers + later.answers)[-_MOST_ANSWERS:]
        set_aside = (self.set_aside + later.set_aside)[-_MOST_SET_ASIDE:]
        beat = max(self.beat, later.beat)
        term = max(self.term, later.term)
        return _Changes(jobs, self.gone | later.gone, answers, set_aside, beat, term)


class JobStore:
    """The file. `open`, then `accepted` and `answered` from the dispatcher's thread, then `close`.

    Args:
        path: the database; its folder must exist.
        after_s: a job that has no answer by then is written, at the latest after twice that; how long
            only the broker's queue and the dispatcher hold it.
        keep_s: how long an answer is kept.
        trouble: called in the store's thread, once per outage, with what went wrong.
        clock: wall time in seconds: what is read here was written by another process.
    """

    def __init__(
        self,
        path: Path,
        *,
        after_s: float = 0.2,
        keep_s: float = 600.0,
        trouble: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._after_s = after_s
        self._keep_s = keep_s
        self._trouble = trouble
        self._clock = clock
        self._lock = threading.Lock()
        self._changes = _Changes()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job store", daemon=True)
        self._num_set_aside = 0
        self.failure = ""
        """Why it cannot be written now; empty while it can."""

    def open(self) -> Recovered:
        """Read what an earlier orchestrator left, and begin. Its jobs are to be accepted anew, or are gone.

        A file that cannot be read is moved aside, and where none can be made there is nothing to recover.
        """
        try:
            recovered = self._read()
        except sqlite3.OperationalError as error:  # the disk; the thread goes on trying
            log.error("the job store cannot be opened", path=self._path, error=error)
            recovered = Recovered()
        except sqlite3.DatabaseError as error:
            aside = self._path.with_suffix(".damaged")
            log.error(
                "the job store is damaged, and moved aside",
                path=self._path,
                error=error,
                aside=aside,
            )
            self._path.replace(aside)
            for rest in ("-wal", "-shm"):
                self._path.with_name(self._path.name + rest).unlink(missing_ok=True)
            recovered = Recovered()
        self._thread.start()
        return recovered

    def _read(self) -> Recovered:
        now = self._clock()
        with contextlib.closing(_connect(self._path)) as database:
            rows = database.execute("SELECT * FROM jobs ORDER BY received_at").fetchall()
            answers = {
                (reply_to, job): StoredAnswer((reply_to, job), payload, bool(msgpack))
                for reply_to, job, msgpack, payload in database.execute(
                    "SELECT reply_to, job, msgpack, payload FROM answers "
                    "WHERE answered_at > ? ORDER BY number",
                    (now - self._keep_s,),
                )
            }
            numbers = dict(database.execute("SELECT number, count FROM beats").fetchall())
            self._num_set_aside = _count_set_aside(database)
        self._changes.gone.update(row[0] for row in rows)
        messages = (_message(row, now) for row in rows)
        return Recovered(
            tuple(m for m in messages if m is not None),
            answers,
            term=numbers.get(_TERM, 0),
            beat=numbers.get(_BEAT, 0),
        )

    @property
    def path(self) -> Path:
        """The database."""
        return self._path

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed yet."""
        return self._thread.is_alive()

    @property
    def num_set_aside(self) -> int:
        """How many jobs of which nodes died are in the file; the newest of them are kept."""
        return self._num_set_aside

    def accepted(self, request_id: str, message: Message) -> None:
        """A job that will have an answer; ids are unique for ever."""
        with self._lock:
            self._changes.jobs[request_id] = _Job(message, self._clock(), time.monotonic())
        self._changed.set()

    def answered(self, request_id: str, answer: StoredAnswer | None) -> None:
        """Its answer went out; None for one that cannot be asked for again."""
        with self._lock:
            if self._changes.jobs.pop(request_id, None) is None:
                self._changes.gone.add(request_id)
            if answer is not None and len(answer.payload) <= _LARGEST_ANSWER_BYTES:
                self._changes.answers.append((self._clock(), answer))
        self._changed.set()

    def set_aside(self, job: SetAside) -> None:
        """Keep a job of which nodes died, in the table `set_aside`: the newest 100, and 64 MiB."""
        with self._lock:
            self._changes.set_aside.append((self._clock(), job))
            del self._changes.set_aside[:-_MOST_SET_ASIDE]
        self._changed.set()

    def beat(self, count: int) -> None:
        """The broker has this count."""
        with self._lock:
            self._changes.beat = count
        self._changed.set()

    def leads(self, term: int) -> None:
        """From now on this is the store of the leader of that term."""
        with self._lock:
            self._changes.term = term
        self._changed.set()

    def close(self, *, resigned: bool = False) -> None:
        """Write what is left, and end. Where `open` was never called, it will do nothing but read.

        One that has resigned writes no more: these jobs are another's now, and maybe this file as well.
        """
        if resigned:
            with self._lock:
                self._changes = _Changes()
        self._closing.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with contextlib.closing(_connect(self._path)) as database:
                    self._serve(database)
            except sqlite3.Error as error:
                log.error("the job store cannot be written", path=self._path, error=error)
                self.failure = f"the job store {self._path} cannot be written: {error}"
                if self._trouble is not None:
                    self._trouble(self.failure)
                self._wait_until_writable()
                self.failure = ""

    def _serve(self, database: sqlite3.Connection) -> None:
        """Write group after group, until closed.

        Raises:
            sqlite3.Error: it cannot be written; nothing of the group is lost.
        """
        while True:
            self._changed.wait()
            closing = self._closing.wait(self._after_s)
            self._changed.clear()
            self._write(database, everything=closing)
            if closing:
                return

    def _write(self, database: sqlite3.Connection, *, everything: bool = False) -> None:
        since = math.inf if everything else time.monotonic() - self._after_s
        with self._lock:
            changes, young = self._changes.split(since)
            self._changes = _Changes(young)
        if young:
            self._changed.set()
        if not changes:
            return
        try:
            if not self._path.exists():
                # SQLite goes on writing to a file that was deleted, and nobody would find it.
                raise sqlite3.OperationalError("the file is gone")
            with database:
                _store(database, changes, self._clock() - self._keep_s)
                num_set_aside = _count_set_aside(database)
        except sqlite3.Error:
            with self._lock:
                self._changes = changes.before(self._changes)
            raise
        self._num_set_aside = num_set_aside

    def _wait_until_writable(self) -> None:
        """An outage is said once, however long it lasts and whatever is tried meanwhile."""
        while not self._closing.wait(_RETRY_S):
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(_connect(self._path)) as database,
            ):
                self._write(database)
                log.warning("the job store can be written again", path=self._path)
                return


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=5.0)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _store(database: sqlite3.Connection, changes: _Changes, oldest: float) -> None:
    database.executemany("DELETE FROM jobs WHERE request_id = ?", ((key,) for key in changes.gone))
    database.executemany(
        "INSERT INTO jobs VALUES (?, ?, ?, ?, ?)",
        (
            (
                key,
                job.received_at,
                job.message.topic,
                job.message.payload,
                encode_msgpack(job.message.properties),
            )
            for key, job in changes.jobs.items()
        ),
    )
    database.executemany(
        "INSERT INTO answers (answered_at, reply_to, job, msgpack, payload) VALUES (?, ?, ?, ?, ?)",
        ((at, *answer.key, answer.msgpack, answer.payload) for at, answer in changes.answers),
    )
    if changes.set_aside:
        _set_aside(database, changes.set_aside)
    if changes.beat:
        database.execute("INSERT OR REPLACE INTO beats VALUES (?, ?)", (_BEAT, changes.beat))
    if changes.term:
        database.execute("INSERT OR REPLACE INTO beats VALUES (?, ?)", (_TERM, changes.term))
    if changes.answers:
        database.execute(
            "DELETE FROM answers WHERE answered_at < ? OR number <= "
            "(SELECT max(number) FROM answers) - ?",
            (oldest, _MOST_ANSWERS),
        )


def _set_aside(database: sqlite3.Connection, jobs: list[tuple[float, SetAside]]) -> None:
    """Add these, and let go of the oldest beyond the bounds; the newest stays, however large."""
    database.executemany(
        "INSERT INTO set_aside (at, request_id, item, model, job, nodes, topic, payload, properties) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                at,
                job.request_id,
                job.item_index,
                job.model,
                job.job,
                " ".join(job.nodes),
                job.message.topic,
                job.message.payload,
                encode_msgpack(job.message.properties),
            )
            for at, job in jobs
        ),
    )
    database.execute(
        "DELETE FROM set_aside WHERE number IN (SELECT number FROM (SELECT number, "
        "row_number() OVER newest AS place, sum(length(payload)) OVER newest AS size FROM set_aside "
        "WINDOW newest AS (ORDER BY number DESC)) WHERE place > ? OR (size > ? AND place > 1))",
        (_MOST_SET_ASIDE, _MOST_SET_ASIDE_BYTES),
    )


def _count_set_aside(database: sqlite3.Connection) -> int:
    count: int = database.execute("SELECT count(*) FROM set_aside").fetchone()[0]
    return count


def _message(row: tuple[str, float, str, bytes, bytes], now: float) -> Message | None:
    """The job as it came, its deadline brought up to now; None when it cannot be read."""
    _, received_at, topic, payload, encoded = row
    try:
        properties = decode_msgpack(encoded, Properties)
    except ProtocolError as error:
        log.error("a stored job cannot be read", topic=topic, error=error)
        return None
    given_ms = properties.user_value("deadline_ms")
    if given_ms is not None:
        limit_ms = float(given_ms)  # one that makes no sense would not have been accepted
    elif properties.expiry_s is not None:
        limit_ms = properties.expiry_s * 1e3
    else:
        limit_ms = math.inf
    if limit_ms < math.inf:
        # A clock that was set back must not lengthen a deadline; what is over is still answered, and says so.
        left_ms = max(limit_ms - max(0.0, now - received_at) * 1e3, 0.001)
        rest = tuple(pair for pair in properties.user if pair[0] != "deadline_ms")
        properties = replace(properties, user=(*rest, ("deadline_ms", f"{left_ms:.3f}")))
    return Message(topic, payload, qos=1, properties=properties)
