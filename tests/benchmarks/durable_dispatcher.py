"""The process that `durability` measures: a dispatcher's thread with some of what keeps its jobs."""

from __future__ import annotations

import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.peer import be_ready, wait_for_end
from orchestrator import job_store
from orchestrator.answers import Shown
from orchestrator.dispatch_notes import ModelSpec, PipelineSpec
from orchestrator.dispatcher import DispatchThread
from orchestrator.job_store import JobStore
from shared.bus import BrokerUrl, MqttDataBus
from shared.codec import decode_json
from shared.topics import Topics

MODEL, PIPELINE, GENERATION = "m", "m-0", 1
_RECEIVE_MAXIMUM = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What keeps the jobs: `store` is the file, none where empty; `synchronous` is SQLite's word."""

    broker: str
    root: str
    manual_ack: bool
    store: str = ""
    after_s: float = 0.2
    synchronous: str = "NORMAL"


def main() -> None:
    """`python -m tests.benchmarks.durable_dispatcher SETTING-AS-JSON`."""
    setting = decode_json(sys.argv[1].encode(), Setting)
    store = None
    if setting.store:
        _synchronise(setting.synchronous)
        store = JobStore(Path(setting.store), after_s=setting.after_s)
        store.open()
    bus = MqttDataBus(
        BrokerUrl.parse(setting.broker),
        f"dispatcher-{setting.root}",
        clean_start=False,
        session_expiry_s=3600,
        manual_ack=setting.manual_ack,
        receive_maximum=_RECEIVE_MAXIMUM,
        gather_writes=True,
    )
    thread = DispatchThread(bus, Topics(setting.root), lambda _: None, store=store)
    shown = Shown(None, "none", (0.0, 0.0))
    thread.tell(ModelSpec(MODEL, ("x",), shown))
    thread.tell(
        PipelineSpec(
            model=MODEL,
            pipeline=PIPELINE,
            generation=GENERATION,
            num_stages=1,
            # Far more than it takes: a busy machine must not have items sent again.
            throughput_per_s=10.0,
            latency_s=1.0,
            shown=shown,
        )
    )
    thread.start()
    while not bus.connected:
        time.sleep(0.01)
    be_ready()
    wait_for_end()
    thread.stop()


def _synchronise(mode: str) -> None:
    """Have the store's connections use another mode than the one that ships."""
    connect = job_store._connect

    def connect_otherwise(path: Path) -> sqlite3.Connection:
        database = connect(path)
        database.execute(f"PRAGMA synchronous={mode}")
        return database

    job_store._connect = connect_otherwise


if __name__ == "__main__":
    main()
