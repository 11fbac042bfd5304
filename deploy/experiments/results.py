"""RESULTS.md: what the records say, for somebody who has to decide. Nothing in it is written by hand.

Where something else is better than we are, it says so first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from deploy.experiments import paper
from deploy.experiments.case import Experiment
from deploy.experiments.catalogue import EXPERIMENTS
from deploy.experiments.decision import decision
from deploy.experiments.drawings import bars, over_time
from deploy.experiments.records import Record
from deploy.experiments.run import DATA, record_file
from deploy.experiments.summary import Figure, Summary, markdown, number, page, spread, summarise
from deploy.experiments.table_one import FIGURES
from deploy.experiments.verdicts import disturbed, sound_ratio, verdicts, worse
from shared.files import write_whole

NAME = "RESULTS.md"
DRAWINGS = "drawings"
_READ = """\
- Every comparison here is on the same cores: cases take turns, round by round, and a round of a page is of
  one machine. Ratios are of figures of the same round (median, least..largest), and so need not be those of
  the medians. Each page says when its data were measured and at which commits. The paper's figures are of
  another machine with another engine; only their ratios can be put beside ours.
- A baseline gets the CPU of all devices together in one process. No split can use CPU better than that;
  what it costs to split is what the ratio to it shows. What a split buys is memory per device, a model on
  devices that are too small for it, and answers when one of them is lost.
- All devices are processes or containers on one machine: links are as quick as its memory, unless an
  experiment slows them, and a device's CPU is a share of a server's core, which is quicker than a small
  board's.
- The weights are random, the photographs made from one; neither changes how long anything takes. With the
  cache on, throughput depends on how often the same image comes again more than on anything else: its
  rows stand by themselves, and no figure to reach goes by them.
- In the paper a communication overhead is negative, a device uses 0.0034 % of its CPU and 1.6 MB of
  memory; what was measured there cannot be told. Each of our figures is defined below its table.
"""


def write_results(output: Path, experiments: Iterable[Experiment] = EXPERIMENTS.values()) -> Path:
    """Write RESULTS.md and its drawings from the raw data below `output`; the file.

    Raises:
        ProtocolError: raw data that cannot be read.
    """
    known = {each.name: each for each in experiments}
    folder = output / DATA
    files = sorted(path.stem for path in folder.glob("*.jsonl")) if folder.is_dir() else []
    order = [*known, *(name for name in files if name not in known)]

    @cache
    def read(name: str) -> Sequence[Record]:
        return record_file(output, name).read()

    found = {
        name: summary
        for name in order
        if (summary := page(known[name], read) if name in known else summarise(read(name)))
        is not None
    }
    lines = ["# Results", "", *_doubts(found), *_worse(found), *_decision(found), *_aims(found)]
    lines += _head(found)
    if "table-1" in found:
        lines += _beside_the_paper(found["table-1"])
    for name, summary in found.items():
        if name == "table-2-profiles":
            lines += _profiles_beside_the_paper(summary)
        lines += _section(known.get(name), summary, output)
    lines += ["## What the numbers say, and what they do not", "", _READ]
    path = output / NAME
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, ("\n".join(lines).rstrip() + "\n").encode(), mode=0o644, durable=False)
    return path


def _head(found: dict[str, Summary]) -> list[str]:
    text = [
        "## How it was measured",
        "",
        f"Made by `amp4ec experiment` from the raw data in [`{DATA}`]({DATA}). Run again, it goes on.",
        "",
    ]
    records = [record for summary in found.values() for record in summary.records]
    if not records:
        return [*text, "Nothing was measured yet.", ""]
    machines = dict.fromkeys(
        f"{m.cpu_model}, {m.cores} cores, {m.memory_bytes / 1e9:.1f} GB, {m.system}"
        for m in (record.machine for record in records)
    )
    dates = sorted(record.machine.at for record in records)
    loads = [record.machine.load_average for record in records]
    commits = dict.fromkeys(record.machine.commit for record in records)
    return [
        *text,
        *(f"- Machine: {machine}" for machine in machines),
        *(f"- Versions: {version}" for version in _versions(records)),
        f"- Measured from {dates[0]} to {dates[-1]}, commits {', '.join(commits)}",
        f"- Load average before a round: {min(loads):g} to {max(loads):g} (below 1 is a quiet machine)",
        "",
    ]


def _doubts(found: dict[str, Summary]) -> list[str]:
    said = disturbed(found)
    if not said:
        return []
    return ["## Not to be relied on", "", *(f"- {sentence}" for sentence in said), ""]


def _worse(found: dict[str, Summary]) -> list[str]:
    said = worse(found)
    lines = ["## Where we are worse", ""]
    if not found:
        return []
    if not said:
        return [*lines, "In none of the comparisons that were measured.", ""]
    return [*lines, *(f"- {sentence}" for sentence in said), ""]


def _decision(found: dict[str, Summary]) -> list[str]:
    said = decision(found)
    if not said:
        return []
    return ["## For somebody who has to decide", "", *(f"- {sentence}" for sentence in said), ""]


def _aims(found: dict[str, Summary]) -> list[str]:
    if not found:
        return []
    words = {True: "reached", False: "**not reached**", None: "printed beside it"}
    rows = [
        (
            each.text,
            each.aim,
            spread(each.measured),
            "not measured (or not to be relied on)"
            if each.measured is None
            else words[each.reached],
        )
        for each in verdicts(found)
    ]
    return [
        "## Figures to reach",
        "",
        *markdown(("figure", "aim", "measured", ""), rows),
        "",
    ]


def _beside_the_paper(summary: Summary) -> list[str]:
    head = ["metric"]
    for column, case in paper.OURS.items():
        head += [f"{column} (paper)", f"{case} (ours)"]
    rows = []
    for name in FIGURES:
        row = [name]
        for column, case in paper.OURS.items():
            row += [
                paper.TABLE_ONE.get(name, {}).get(column, "-"),
                spread(summary.figure(case, name)),
            ]
        rows.append(row)
    return [
        "## Table I beside the paper's",
        "",
        "The paper counts requests, we count images; its latency is of a batch of 32, as ours here.",
        "",
        *markdown(head, rows),
        "",
    ]


def _profiles_beside_the_paper(summary: Summary) -> list[str]:
    rows = [
        [
            name,
            number(milliseconds),
            *(
                spread(summary.figure(case, f"{name.lower()}_latency_ms"))
                for case in ("AMP4EC", "eager PyTorch")
            ),
        ]
        for name, milliseconds in paper.TABLE_TWO_MS.items()
    ]
    head = ["profile", "paper, ms", "AMP4EC (ours), ms", "eager PyTorch (ours), ms"]
    return ["## Table II beside the paper's", "", *markdown(head, rows), ""]


def _section(experiment: Experiment | None, summary: Summary, output: Path) -> list[str]:
    title = summary.experiment if experiment is None else experiment.title
    lines = [f"## {title}", ""]
    if experiment is not None:
        lines += [experiment.text, ""]
    names = summary.names() if experiment is None else list(experiment.figures)
    names = [name for name in names if any(summary.figure(case, name) for case in summary.cases)]
    ratios = [
        (head, which)
        for which, head in enumerate(("x paper's", "x strict"))
        if any(_ratio(summary, case, which) for case in summary.cases)
    ]
    rows = [
        [
            case,
            *(spread(summary.figure(case, name)) for name in names),
            *(spread(_ratio(summary, case, which)) for _, which in ratios),
            summary.length(case),
            _notes(summary, case),
        ]
        for case in summary.cases
    ]
    head = ["", *names, *(head for head, _ in ratios), "measured", "notes"]
    lines += [*_origin(summary), "", *markdown(head, rows), ""]
    if experiment is not None:
        lines += [f"- `{name}`: {experiment.figures[name]}" for name in names]
        lines += [f"- `{head}`: {_RATIOS[which]}" for head, which in ratios]
        lines += [""]
    return [*lines, *_drawing(experiment, summary, output)]


_PAPER = (
    "Throughput against the paper's baseline: eager PyTorch, whole batches of 32 (where the table has "
    "another eager row, that one), the CPU of all devices in one process."
)
_STRICT = (
    "Throughput against the strict baseline: one process with the same runtime, the same optimisation and "
    "the CPU of all devices."
)
_RATIOS = (_PAPER, _STRICT)


def _ratio(summary: Summary, case: str, which: int) -> Figure | None:
    """A case's throughput against the paper's baseline (0) or the strict one (1), where those are sound."""
    other = summary.beside.get(case, ("", ""))[which]
    return sound_ratio(summary, case, other) if other else None


def _origin(summary: Summary) -> list[str]:
    """When, on which commits and with which settings the records of a page came to be."""
    records = summary.records
    first, last = summary.dates
    commits = Counter(record.machine.commit for record in records)
    said = ", ".join(f"{name} {value}" for name, value in summary.settings.items())
    seconds = sum(record.seconds for record in records)
    file = f"{DATA}/{summary.experiment}.jsonl"
    return [
        f"Median (least..largest) of the rounds; {said or 'no settings'}; {seconds / 60:.0f} min in all.",
        f"Measured from {first} to {last} at "
        + ", ".join(f"{commit} ({count} records)" for commit, count in commits.items())
        + f". Raw: [`{file}`]({file})"
        + (f"; {summary.left_out} other records are left out." if summary.left_out else "."),
        f"On {summary.machines}. With {'; '.join(_versions(records))}.",
    ]


def _versions(records: Iterable[Record]) -> list[str]:
    return list(
        dict.fromkeys(
            ", ".join(f"{name} {number}" for name, number in record.machine.versions.items())
            for record in records
        )
    )


def _notes(summary: Summary, case: str) -> str:
    """What the last round had to say."""
    return "; ".join(f"{name}: {text}" for name, text in summary.of(case)[-1].notes.items() if text)


def _drawing(experiment: Experiment | None, summary: Summary, output: Path) -> list[str]:
    folder = output / DRAWINGS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{summary.experiment}.svg"
    figure = "throughput_per_s" if experiment is None else experiment.draw
    if experiment is not None and experiment.over_time is not None:
        drawn = over_time(summary, experiment.over_time, path)
    else:
        drawn = figure is not None and bars(summary, figure, path)
    return [f"![{summary.experiment}]({DRAWINGS}/{path.name})", ""] if drawn else []
