"""`amp4ec infer`: photographs, folders, cameras in; answers out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from deploy.cli.infer_output import (
    Asked,
    Outcome,
    Output,
    Tally,
    describe,
    describe_shortly,
    document_of,
    picture_in,
)
from deploy.cli.options import CONNECT_S, DURATION, Common, common_options, json_option
from deploy.cli.output import Progress, note, print_json
from shared.client import Client
from shared.errors import Amp4ecError, BrokerUnreachableError, ConfigurationError
from shared.job_options import Policy

if TYPE_CHECKING:
    from deploy.live.annotate import Album

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".npy"})
_KEPT_LIVE = 1000
"""Annotated pictures of a camera, which would fill any disk otherwise."""
_SHRINK = 540
"""No classifier of torchvision looks at more than 518 pixels."""


@click.command("infer")
@click.argument("model")
@click.argument(
    "files", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[FILE]..."
)
@click.option(
    "--watch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Files that come into this folder, as soon as they are fully written, until Ctrl-C.",
)
@click.option("--existing", is_flag=True, help="With --watch: the files that are there, too.")
@click.option(
    "--camera",
    metavar="SOURCE",
    help="The frames of a video file, a device (/dev/video0), a stream (rtsp://, http://) or - .",
)
@click.option(
    "--fps",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    help="With --camera: at most so many frames per second.  [default: all]",
)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.LATEST.value,
    show_default=True,
    help="With --camera. latest: a recording plays at its own speed, and a frame that waits gives way to a "
    "newer one. lossless: all are answered, however long it takes.",
)
@click.option(
    "--shrink",
    type=click.IntRange(min=0),
    default=_SHRINK,
    show_default=True,
    metavar="PIXELS",
    help="With --camera: frames are sent as JPEG, with a shorter side of at most this; 0: of their size.",
)
@click.option(
    "--annotate",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each picture there with its labels, probabilities and latency below it.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    help=f"With --annotate: the latest so many pictures of this run.  [default: all; {_KEPT_LIVE} of a "
    "device or an endless stream]",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Labels shown."
)
@click.option(
    "--timeout", type=DURATION, default="60s", show_default=True, help="How long to wait for each."
)
@click.option("--deadline", type=DURATION, help="How long the cluster may take for each.")
@click.option("--jsonl", is_flag=True, help="Print a line of JSON for each, as they come.")
@json_option
@common_options
@click.pass_context
def infer_command(
    ctx: click.Context,
    *,
    common: Common,
    model: str,
    files: tuple[Path, ...],
    watch: Path | None,
    existing: bool,
    camera: str | None,
    fps: float | None,
    policy: str,
    shrink: int,
    annotate: Path | None,
    keep: int | None,
    top: int,
    timeout: float,
    deadline: float | None,
    jsonl: bool,
    as_json: bool,
) -> int:
    """Run MODEL on each FILE: an image, a .npy tensor, or a folder of these; or on what comes by itself.

    With --json standard output is one document: the answer, or a list of answers for several
    files; with --watch or --camera it is a line for each, as with --jsonl. An error stands in its input's
    place; the exit code is then 1. --watch, --camera and --annotate need amp4ec[camera].

    \b
    Example:
        amp4ec infer mobilenet_v2 cat.jpg --broker mqtt://192.168.1.5
        amp4ec infer mobilenet_v2 --watch photos --jsonl
        amp4ec infer mobilenet_v2 --camera rtsp://user:password@camera/stream --fps 5 --annotate seen
    """  # noqa: D301
    _check_usage(ctx, files, watch, camera, annotate)
    asked = Asked(model=model, timeout_s=timeout, deadline_s=deadline)
    if files:
        paths = expand(files)
        output = Output(
            top=top,
            lines=jsonl,
            text=None if jsonl or as_json else describe,
            album=_album(annotate, keep),
        )
        outcomes = asyncio.run(_infer(common, asked, paths, output))
        if as_json and not jsonl:
            documents = [
                {"file": str(path), **document_of(outcome, top)}
                for path, outcome in zip(paths, outcomes, strict=True)
            ]
            single = len(files) == 1 and not files[0].is_dir()
            print_json(documents[0] if single else documents)
        return 1 if any(isinstance(outcome, Amp4ecError) for outcome in outcomes) else 0
    from deploy.cli.infer_live import CameraFeed, FolderFeed, follow

    lines = jsonl or as_json
    text = None if lines else describe_shortly
    if watch is not None:
        output = Output(top=top, lines=lines, text=text, album=_album(annotate, keep))
        folder = FolderFeed(watch, SUFFIXES, existing=existing)
        return asyncio.run(follow(folder, output, common, asked))
    assert camera is not None
    from deploy.live.video import Video

    latest = policy == Policy.LATEST
    video = Video(camera, fps=fps, paced=latest, shrink=shrink or None, tell=note)
    if keep is None and video.live:
        keep = _KEPT_LIVE
    output = Output(top=top, lines=lines, text=text, album=_album(annotate, keep))
    return asyncio.run(follow(CameraFeed(video, latest=latest), output, common, asked))


def _check_usage(
    ctx: click.Context,
    files: Sequence[Path],
    watch: Path | None,
    camera: str | None,
    annotate: Path | None,
) -> None:
    """Raises click.UsageError for options that do not go together."""
    given = [bool(files), watch is not None, camera is not None]
    if sum(given) != 1:
        raise click.UsageError(
            "Name what to run MODEL on: one or more FILEs, --watch DIR, or --camera SOURCE."
            if not any(given)
            else "FILEs, --watch and --camera exclude each other."
        )
    said = {
        name
        for name in ("existing", "fps", "policy", "shrink", "keep")
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    for name, goes_with, there in (
        ("existing", "--watch", watch is not None),
        ("fps", "--camera", camera is not None),
        ("policy", "--camera", camera is not None),
        ("shrink", "--camera", camera is not None),
        ("keep", "--annotate", annotate is not None),
    ):
        if name in said and not there:
            raise click.UsageError(f"--{name} goes with {goes_with} only.")
    if watch is not None and annotate is not None and watch.resolve() == annotate.resolve():
        raise click.UsageError(
            "--annotate writes into the folder that --watch reads: each picture would be answered again."
        )


def _album(directory: Path | None, keep: int | None) -> Album | None:
    if directory is None:
        return None
    from deploy.live.annotate import Album

    return Album(directory, keep=keep)


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
    common: Common, asked: Asked, paths: Sequence[Path], output: Output
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    tally = Tally("files")
    async with Client(common.broker, root=common.root, connect_timeout_s=CONNECT_S) as client:
        total = len(paths) if len(paths) > 1 else None
        stream = client.stream(
            asked.model, paths, timeout_s=asked.timeout_s, deadline_s=asked.deadline_s
        )
        with Progress(f"asking {asked.model}", total) as progress:
            async with aclosing(stream):
                async for item in stream:
                    if isinstance(item.error, BrokerUnreachableError):
                        raise item.error  # of no use to ask for the others
                    outcomes.append(item.outcome)
                    tally.take(item.outcome)
                    if total is not None:
                        progress.done(len(outcomes))
                    name, image = picture_in(item.input) or ("", None)
                    where = {"file": str(item.input)}
                    await output.take(str(item.input), where, item.outcome, image, picture=name)
    if total is not None:
        note(tally.summary())
    return outcomes
