"""Runs experiments: rounds outside, then experiments, then cases, so that all see the machine's same hours.

What is recorded already, at least as long, is not measured again, and a round of an experiment is of one
machine. A case that fails is told of, and tried again by the next run. A run that is ended after its first
round has something to say of everything.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.experiments.case import Case, Experiment, Lab, Say, Settings
from deploy.experiments.records import Parameter, Record, RecordFile
from deploy.machine import this_machine, this_processor
from shared.errors import Amp4ecError
from shared.logs import get_log

log = get_log(__name__)
DATA = "data"
"""The folder of the raw data, below that of the results."""


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement that is to be made; its record goes to `home`."""

    experiment: Experiment
    case: Case
    number: int

    @property
    def home(self) -> str:
        """The experiment that has the record."""
        return self.case.home or self.experiment.name


def record_file(output: Path, experiment: str) -> RecordFile:
    """Where an experiment's raw data is."""
    return RecordFile(output / DATA / f"{experiment}.jsonl")


def missing(experiments: Iterable[Experiment], settings: Settings, output: Path) -> list[Round]:
    """The rounds that are not recorded yet, in the order in which they are to be made, each once.

    A round of an experiment is of one machine, its baselines included: what another machine left unfinished
    is begun again here.

    Raises:
        ProtocolError: the recorded data cannot be read.
    """
    every = [(experiment, experiment.every(settings)) for experiment in experiments]
    machines: defaultdict[object, set[str]] = defaultdict(set)
    for home in {case.home or experiment.name for experiment, cases in every for case in cases}:
        for record in record_file(output, home).read():
            if float(record.parameters.get("minutes") or 0.0) >= settings.minutes:
                key = _key(record.case, record.round, record.parameters)
                machines[home, key].add(record.machine.processor)
    here = this_processor()
    wanted: dict[object, Round] = {}
    for number in range(1, settings.repeat + 1):
        for experiment, cases in every:
            rounds = {}
            for case in cases:
                each = Round(experiment, case, number)
                rounds[each.home, _key(case.name, number, _parameters(case, settings))] = each
            if not set.intersection(*(machines[key] for key in rounds)):
                for key, each in rounds.items():
                    if here not in machines[key]:
                        wanted.setdefault(key, each)
    return list(wanted.values())


def _key(case: str, number: int, parameters: Mapping[str, Parameter]) -> object:
    """What tells records apart but for their length: a longer one says what a shorter one would."""
    rest = {name: value for name, value in parameters.items() if name != "minutes"}
    return case, number, tuple(sorted(rest.items()))


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
    todo = missing(experiments, settings, output)
    left_s = sum(each.case.seconds for each in todo)
    cases = {
        (case.home or each.name, case.name) for each in experiments for case in each.every(settings)
    }
    count = len(cases) * settings.repeat
    say(
        f"{count - len(todo)} of {count} rounds are recorded; the others take about {_time(left_s)}"
    )
    failed: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="amp4ec-experiment-")))
        (folder / "kept").mkdir()
        lab = Lab(settings, folder, folder / "kept", lambda text: say(f"  {text}"))
        stack.push_async_callback(lab.clear)
        for index, each in enumerate(todo, 1):
            name = f"{each.experiment.name}: {each.case.label}"
            say(f"[{index}/{len(todo)}, {_time(left_s)} left] {name}, round {each.number}")
            lab.directory = folder / str(index)
            lab.directory.mkdir()
            try:
                took_s = await _measure(each, lab, output)
            except Exception as error:
                # The next case gets a cluster of its own.
                await lab.clear()
                failed[name] = str(error) if isinstance(error, Amp4ecError) else repr(error)
                say(f"  failed: {failed[name]}")
                if not isinstance(error, Amp4ecError):
                    log.exception("a case failed", case=name)
            else:
                say(f"  took {took_s:.0f} s of {each.case.seconds:.0f} s expected")
            left_s -= each.case.seconds
    return failed


async def _measure(each: Round, lab: Lab, output: Path) -> float:
    """Measure and record a round; the seconds that it took."""
    machine = this_machine()
    began = time.monotonic()
    measured = await each.case.measure(lab)
    took_s = time.monotonic() - began
    record_file(output, each.home).append(
        Record(
            experiment=each.home,
            case=each.case.name,
            round=each.number,
            parameters=_parameters(each.case, lab.settings),
            figures=dict(measured.figures),
            notes=dict(measured.notes),
            series={name: list(values) for name, values in measured.series.items()},
            seconds=round(took_s, 1),
            machine=machine,
        )
    )
    return took_s


def _parameters(case: Case, settings: Settings) -> dict[str, Parameter]:
    return {**settings.parameters(), **case.parameters}


def _time(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"
