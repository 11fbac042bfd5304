"""The latest deployments, in a file: what was put where, when, why, at what cost, and what became of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from orchestrator.core.cluster_events import DeploymentEnded
from shared.codec import decode_json, encode_json
from shared.errors import ProtocolError
from shared.files import write_whole
from shared.logs import get_log
from shared.messages.operation import DeployedStage, Deployment, DeploymentsRequest

log = get_log(__name__)

MOST = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    root: str
    deployments: list[Deployment] = field(default_factory=list)


class DeploymentLog:
    """Deployments below one root topic, the last `most` of them; written whole with each.

    Args:
        path: in a folder that exists when something is added.
        root: the root topic; what the file says of another one is not ours.
        most: are kept.
    """

    def __init__(self, path: Path, root: str, most: int = MOST) -> None:
        self._path = path
        self._root = root
        self._kept = deque(self._read(), maxlen=most)

    def add(self, ended: DeploymentEnded, slice_s: float) -> None:
        """Keep what became of a plan. A disk that fails is logged: the record stays as long as we do."""
        self._kept.append(_record(ended, slice_s))
        document = _Document(root=self._root, deployments=list(self._kept))
        try:
            # On the event loop, and rarely. Against processes that are killed, as `ServedFile` is.
            write_whole(self._path, encode_json(document), durable=False)
        except OSError as error:
            log.error("the deployments cannot be written", path=self._path, error=error)

    def latest(self, request: DeploymentsRequest) -> list[Deployment]:
        """Those that are asked for, the latest first."""
        mine = (d for d in reversed(self._kept) if request.model in (None, d.model))
        return list(islice(mine, request.most))

    def _read(self) -> list[Deployment]:
        try:
            document = decode_json(self._path.read_bytes(), _Document)
        except FileNotFoundError:
            return []
        except (OSError, ProtocolError) as error:
            log.error(
                "earlier deployments cannot be read, and are forgotten",
                path=self._path,
                error=error,
            )
            return []
        return document.deployments if document.root == self._root else []


def _record(ended: DeploymentEnded, slice_s: float) -> Deployment:
    began = datetime.now(UTC) - timedelta(seconds=ended.took_s)
    stages = []
    for load in ended.stages:
        said = load.report
        stages.append(
            DeployedStage(
                pipeline=load.pipeline,
                stage=load.stage,
                node=load.node,
                blocks=load.blocks,
                state="silent" if said is None else said.state,
                fetched_bytes=0 if said is None else said.fetched_bytes,
                fetch_s=0.0 if said is None else round(said.fetch_s, 4),
                load_s=0.0 if said is None else round(said.load_s, 4),
            )
        )
    return Deployment(
        at=began.isoformat(timespec="milliseconds"),
        model=ended.model,
        manifest=ended.manifest,
        runtime=ended.runtime,
        level=ended.level,
        generation=ended.generation,
        reason=ended.cause,
        outcome="active" if ended.active else "failed",
        detail=ended.fate,
        took_s=round(ended.took_s, 4),
        waited_s=round(ended.took_s - ended.loaded_s, 4),
        slice_s=round(slice_s, 4),
        fetched_bytes=sum(stage.fetched_bytes for stage in stages),
        stages=stages,
    )
