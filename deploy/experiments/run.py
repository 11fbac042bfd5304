"""Runs experiments: rounds outside and cases inside, so that every case sees the same hours of the machine.

What is recorded already is not measured again; a case that fails is told of, and tried again by the next run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.experiments.case import Case, Experiment, Lab, Say, Settings
from deploy.experiments.records import Record, RecordFile
from deploy.machine import this_machine
from shared.errors import Amp4ecError
from shared.logs import get_log

log = get_log(__name__)
DATA = "data"
"""The folder of the raw data, below that of the results."""


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement that is to be made."""

    experiment: Experiment
    case: Case
    number: int


def record_file(output: Path, experiment: str) -> RecordFile:
    """Where an experiment's raw data is."""
    return RecordFile(output / DATA / f"{experiment}.jsonl")


def missing(experiment: Experiment, settings: Settings, output: Path) -> list[Round]:
    """The rounds that are not recorded yet, in the order in which they are to be made.

    Raises:
        ProtocolError: the recorded data cannot be read.
    """
    known = {
        (record.case, record.round, tuple(sorted(record.parameters.items())))
        for record in record_file(output, experiment.name).read()
    }
    cases = experiment.cases(settings)
    return [
        Round(experiment, case, number)
        for number in range(1, settings.repeat + 1)
        for case in cases
        if (case.name, number, tuple(sorted(_parameters(case, settings).items()))) not in known
    ]


async def run(
    experiments: Sequence[Experiment], settings: Settings, output: Path, say: Say
) -> dict[str, str]:
    """Measure what is not recorded yet; what failed, by name of experiment and case, with the reason.

    Args:
        experiments: which.
        settings: how long and how large.
        output: the folder that the raw data goes below.
        say: gets a line per step, the estimate first.

    Raises:
        ProtocolError: data that was recorded before cannot be read.
    """
    todo = [round_ for each in experiments for round_ in missing(each, settings, output)]
    count = sum(len(each.cases(settings)) * settings.repeat for each in experiments)
    left_s = sum(each.case.seconds for each in todo)
    say(
        f"{count - len(todo)} of {count} rounds are recorded; the others take about {_time(left_s)}"
    )
    failed: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="amp4ec-experiment-")))
        lab = Lab(settings, folder, lambda text: say(f"  {text}"))
        stack.push_async_callback(lab.clear)
        before: Experiment | None = None
        for index, each in enumerate(todo, 1):
            if each.experiment is not before:
                await lab.clear()
            before = each.experiment
            name = f"{each.experiment.name}: {each.case.name}"
            say(f"[{index}/{len(todo)}, {_time(left_s)} left] {name}, round {each.number}")
            lab.directory = folder / str(index)
            lab.directory.mkdir()
            try:
                await _measure(each, lab, output)
            except Exception as error:
                # The next case gets a cluster of its own.
                await lab.clear()
                failed[name] = str(error) if isinstance(error, Amp4ecError) else repr(error)
                say(f"  failed: {failed[name]}")
                if not isinstance(error, Amp4ecError):
                    log.exception("a case failed", case=name)
            left_s -= each.case.seconds
    return failed


async def _measure(each: Round, lab: Lab, output: Path) -> None:
    machine = this_machine()
    began = time.monotonic()
    measured = await each.case.measure(lab)
    record_file(output, each.experiment.name).append(
        Record(
            experiment=each.experiment.name,
            case=each.case.name,
            round=each.number,
            parameters=_parameters(each.case, lab.settings),
            figures=dict(measured.figures),
            notes=dict(measured.notes),
            series={name: list(values) for name, values in measured.series.items()},
            seconds=round(time.monotonic() - began, 1),
            machine=machine,
        )
    )


def _parameters(case: Case, settings: Settings) -> dict[str, bool | int | float | str | None]:
    return {**settings.parameters(), **case.parameters}


def _time(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"
