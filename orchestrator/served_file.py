"""What is served, in a file of our own: for the day on which broker and orchestrator die together.

The broker's retained topics say it as well, and are read first; but a broker that was killed has forgotten
what came since it last saved, which may be all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shared.codec import decode_json, encode_json
from shared.errors import ProtocolError
from shared.files import write_whole
from shared.logs import get_log
from shared.messages import Term
from shared.messages.model import ModelState

log = get_log(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    root: str
    term: Term = 0
    models: dict[str, ModelState] = field(default_factory=dict)


class ServedFile:
    """The states of served models below one root topic, by name; written whole with each change.

    Args:
        path: in a folder that exists.
        root: the root topic.
        term: the one under which we lead; it is written with the states.
        before: the term of the leader before us. A file of an earlier one is outdated: others led since, and
            may have stopped what it names.
    """

    def __init__(self, path: Path, root: str, *, term: int = 0, before: int = 0) -> None:
        self._path = path
        self._root = root
        self._term = term
        self._before = before
        self._models: dict[str, ModelState] = {}

    def read(self) -> dict[str, ModelState]:
        """What an earlier orchestrator of this root served; nothing where the file is missing or damaged."""
        try:
            document = decode_json(self._path.read_bytes(), _Document)
        except FileNotFoundError:
            return {}
        except (OSError, ProtocolError) as error:
            log.error(
                "what was served cannot be read: the broker's word is taken alone",
                path=self._path,
                error=error,
            )
            return {}
        if document.root != self._root:
            return {}
        if document.term < self._before:
            log.info("what we served counts no more: others led since", term=document.term)
            return {}
        self._models = dict(document.models)
        return dict(self._models)

    def settle(self) -> None:
        """What was served is taken over: from now on the file is of our term, whatever changes."""
        self._write()

    def write(self, model: str, state: ModelState | None) -> None:
        """Remember a model's state; None forgets it. A disk that fails is logged: the broker has it, too.

        Mere measurements are no reason to write: called on the event loop, with each change.
        """
        known = self._models.get(model)
        if (known and _served(known)) == (state and _served(state)):
            return
        if state is None:
            del self._models[model]
        else:
            self._models[model] = state
        self._write()

    def _write(self) -> None:
        try:
            # Against processes that are killed; a machine without power has lost its nodes as well.
            document = _Document(root=self._root, term=self._term, models=self._models)
            data = encode_json(document)
            write_whole(self._path, data, durable=False)
        except OSError as error:
            log.error("what is served cannot be written", path=self._path, error=error)


def _served(state: ModelState) -> tuple[object, ...]:
    """What a successor needs to go on."""
    places = [
        (pipeline.pipeline, [(stage.node, stage.blocks) for stage in pipeline.stages])
        for pipeline in state.pipelines
    ]
    return state.state, state.generation, state.manifest, state.options, state.runtime, places
