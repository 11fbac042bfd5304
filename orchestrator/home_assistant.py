"""Announces nodes and served models to Home Assistant, keeps that true, and takes it back.

What is announced follows from the cluster once a second (`core.home_assistant`). The broker shows what an
orchestrator before us has announced: what is not true any more is taken back. A file of our own remembers
below which prefix that was, so that a switch-off, or another prefix, clears it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.core.home_assistant import Discovery, Document
from orchestrator.core.nodes import Node
from orchestrator.dispatch_notes import Report
from orchestrator.identity import own_version
from orchestrator.options import OrchestratorOptions
from orchestrator.outbox import Outbox
from shared.bus import Message
from shared.codec import decode_json, encode_json
from shared.errors import ProtocolError
from shared.files import write_whole
from shared.logs import get_log
from shared.messages.operation import LastLabel
from shared.topics import Topics

log = get_log(__name__)

_ONLINE = b"online"
_LONGEST_LABEL = 200
"""Characters: it comes again each second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remembered:
    """`home_assistant.json`: where the documents of `root` are."""

    root: str
    prefix: str


class HomeAssistant:
    """One per time of leading, in its event loop; does nothing where nobody asked for it, nor ever did."""

    def __init__(self, options: OrchestratorOptions, topics: Topics, outbox: Outbox) -> None:
        self._outbox = outbox
        self._root = topics.root
        self._file = options.state_dir / "home_assistant.json"
        version = own_version()
        places = {
            prefix: Discovery(prefix, topics, version)
            for prefix in (options.home_assistant, self._remembered())
            if prefix is not None
        }
        self._places = tuple(places.values())
        self._announces = places.get(options.home_assistant or "")
        self._settled = False
        self._there: set[str] = set()
        """Topics of ours with a document at the broker, as far as it has shown them."""
        self._published: dict[str, Document] = {}
        self._again = False
        self.labels: dict[str, LastLabel] = {}
        """By model: what `metrics` tells for it."""

    @property
    def patterns(self) -> list[str]:
        """What to subscribe to."""
        statuses = [] if self._announces is None else [self._announces.status_topic]
        return [*statuses, *(each.pattern for each in self._places)]

    def take(self, message: Message) -> bool:
        """Whether a message was for us."""
        for place in self._places:
            if message.topic == place.status_topic:
                # Done with the next refresh: whoever says it a hundred times a second is answered once.
                self._again = self._again or bytes(message.payload) == _ONLINE
                return True
            if message.topic.startswith(f"{place.prefix}/device/"):
                if place.is_ours(message.topic):
                    self._shown(message)
                return True
        return False

    def _shown(self, message: Message) -> None:
        if not message.payload:
            self._there.discard(message.topic)
            return
        self._there.add(message.topic)
        if message.retain:
            self._outbox.kept(message.topic, message.payload)

    def answered(self, report: Report) -> None:
        """What classifiers said in the last second."""
        if self._announces is None:
            return
        for model, answered in report.answered.items():
            if (last := answered.last) is not None:
                self.labels[model] = LastLabel(
                    label=last.label[:_LONGEST_LABEL],
                    probability=last.probability,
                    at=datetime.now(UTC).isoformat(timespec="seconds"),
                )

    def refresh(self, nodes: Iterable[Node], models: Iterable[str]) -> None:
        """Make what is announced true; to be called once the cluster knows who is there, then each second."""
        if not self._places:
            return
        models = list(models)
        wanted = {} if self._announces is None else self._announces.documents(nodes, models)
        self.labels = {model: last for model, last in self.labels.items() if model in models}
        for topic, document in wanted.items():
            if document is not None and (self._again or self._published.get(topic) != document):
                self._published[topic] = document
                self._outbox.announce(topic, document)
        for topic in (self._there | self._published.keys()) - wanted.keys():
            log.info("a device is taken back from Home Assistant", topic=topic)
            self._there.discard(topic)
            self._published.pop(topic, None)
            self._outbox.announce(topic, None)
        self._again = False
        if not self._settled:
            self._settled = True
            self._remember()

    def _remembered(self) -> str | None:
        try:
            known = decode_json(self._file.read_bytes(), _Remembered)
        except FileNotFoundError:
            return None
        except (OSError, ProtocolError) as error:
            log.warning("what was announced cannot be read", path=self._file, error=error)
            return None
        return known.prefix if known.root == self._root else None

    def _remember(self) -> None:
        try:
            if self._announces is None:
                self._file.unlink(missing_ok=True)
            else:
                known = _Remembered(root=self._root, prefix=self._announces.prefix)
                write_whole(self._file, encode_json(known), durable=False)
        except OSError as error:
            log.error("what is announced cannot be written", path=self._file, error=error)
