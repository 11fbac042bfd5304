"""`amp4ec infer`: photographs in, answers out."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deploy.cli.options import CONNECT_S, DURATION, Common, common_options, json_option
from deploy.cli.output import Progress, answer_document, note, print_json, print_line
from shared.client import Client, Result
from shared.errors import Amp4ecError, ConfigurationError, JobError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".npy"})
_AT_ONCE = 8
"""Jobs in flight: enough to keep every stage of a pipeline busy, little beside other clients."""


@click.command("infer")
@click.argument("model")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE...",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Labels shown."
)
@click.option(
    "--timeout", type=DURATION, default="60s", show_default=True, help="How long to wait for each."
)
@click.option("--deadline", type=DURATION, help="How long the cluster may take for each.")
@json_option
@common_options
def infer_command(
    *,
    common: Common,
    model: str,
    files: tuple[Path, ...],
    top: int,
    timeout: float,
    deadline: float | None,
    as_json: bool,
) -> int:
    """Run MODEL on each FILE: an image, a .npy tensor, or a folder of these.

    With --json standard output is one document: the answer, or a list of answers for several
    files. An error stands in its file's place; the exit code is then 1.

    \b
    Example:
        amp4ec infer mobilenet_v2 cat.jpg --broker mqtt://192.168.1.5
    """  # noqa: D301
    paths = expand(files)
    asked = _Asked(model=model, top=top, timeout_s=timeout, deadline_s=deadline)
    replies = asyncio.run(_infer(common, asked, paths, as_json=as_json))
    if as_json:
        documents = [_document(path, reply, top) for path, reply in replies]
        single = len(files) == 1 and not files[0].is_dir()
        print_json(documents[0] if single else documents)
    return 1 if any(isinstance(reply, Amp4ecError) for _, reply in replies) else 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    model: str
    top: int
    timeout_s: float
    deadline_s: float | None


Reply = Result | Amp4ecError


def expand(files: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the images and arrays directly in them, in the order of their names.

    Raises:
        ConfigurationError: a folder has none.
    """
    paths: list[Path] = []
    for path in files:
        if not path.is_dir():
            paths.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise ConfigurationError(
                f"no images in {path}", expected=", ".join(sorted(SUFFIXES)), got="none of these"
            )
        paths += inside
    return paths


async def _infer(
    common: Common, asked: _Asked, paths: Sequence[Path], *, as_json: bool
) -> list[tuple[Path, Reply]]:
    replies: list[tuple[Path, Reply]] = []
    free = asyncio.Semaphore(_AT_ONCE)
    async with Client(common.broker, root=common.root, connect_timeout_s=CONNECT_S) as client:

        async def ask(path: Path) -> Reply:
            async with free:
                try:
                    return await client.infer(
                        asked.model,
                        path,
                        timeout_s=asked.timeout_s,
                        deadline_s=asked.deadline_s,
                    )
                except (JobError, ConfigurationError) as error:
                    return error

        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(ask(path), name=f"infer {path}") for path in paths]
            with Progress(f"asking {asked.model}") as progress:
                for number, (path, job) in enumerate(zip(paths, jobs, strict=True), start=1):
                    reply = await job
                    replies.append((path, reply))
                    if len(paths) > 1:
                        progress.count(f"{number} of {len(paths)} answered")
                    if isinstance(reply, Amp4ecError):
                        note(f"{path}: error: {reply}")
                    elif not as_json:
                        print_line(describe(str(path), reply, asked.top))
    return replies


def describe(name: str, result: Result, top: int) -> str:
    """A result for people: labels, then where the time went."""
    lines = [name]
    lines += [f"  {label.probability:7.2%}  {label.label}" for label in result.top[:top]]
    if not result.top:
        lines.append("  no labels: the model is no classifier")
    if result.random_weights:
        lines.append("  the model's weights are random: these labels mean nothing")
    if not result.exact:
        lines.append("  not exact: a lossy level or codec was asked for")
    lines.append(
        f"  {result.latency_s * 1e3:.1f} ms, {result.model} in {len(result.trace)} "
        f"{'stage' if len(result.trace) == 1 else 'stages'}, generation {result.generation}"
        + (", from the cache" if result.cached else "")
    )
    width = max((len(entry.node) for entry in result.trace), default=0)
    lines += [
        f"    stage {entry.stage}  {entry.node:<{width}}  queue {entry.queue_s * 1e3:6.1f}"
        f"  compute {entry.compute_s * 1e3:6.1f}  transit {entry.transit_s * 1e3:6.1f} ms"
        for entry in result.trace
    ]
    return "\n".join(lines)


def _document(path: Path, reply: Reply, top: int) -> dict[str, Any]:
    if isinstance(reply, Result):
        answer = dataclasses.replace(reply.answer, top=list(reply.top[:top]))
        return {"file": str(path), **answer_document(answer)}
    error = {
        "code": reply.code if isinstance(reply, JobError) else None,
        "message": reply.message,
        "expected": reply.expected,
        "got": reply.got,
    }
    if isinstance(reply, JobError) and reply.retry_after_s is not None:
        error["retry_after_s"] = str(reply.retry_after_s)
    return {"file": str(path), "status": "error", "error": error}
