"""Records read together: of each case the median of its rounds, with the least and the largest."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deploy.experiments.case import Engine, Experiment, Settings
from deploy.experiments.records import Parameter, Record

MINUTES = "minutes"
SETTINGS = ("scale", "seed", "engine")
"""Parameters of a run, not of a case; what differs in them is not read side by side."""
Read = Callable[[str], Sequence[Record]]
"""The records that are kept with an experiment of that name."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure over the rounds; None where no round had it."""

    median: float
    least: float
    largest: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The records that are read on one page: those of one setting, and of each case the longest rounds.

    `beside` has for each case the names of its baselines: the paper's, and the strict one.
    """

    experiment: str
    records: tuple[Record, ...]
    left_out: int
    """Records in the experiment's file that are of other settings, shorter, or of a round that another
    machine has more of."""
    beside: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """Their names, as they were first measured."""
        return list(dict.fromkeys(record.case for record in self.records))

    def length(self, case: str) -> str:
        """How often and how long a case was measured, for people."""
        times = Counter(_minutes(record) for record in self.of(case))
        return ", ".join(f"{count} x {minutes:g} min" for minutes, count in times.items()) or "-"

    @property
    def settings(self) -> dict[str, Parameter]:
        """What all of them have in common."""
        first = self.records[0].parameters
        return {name: first[name] for name in SETTINGS if name in first}

    @property
    def machines(self) -> str:
        """What they were measured on, for people; with the rounds where that was more than one machine."""
        rounds: defaultdict[str, set[int]] = defaultdict(set)
        for record in self.records:
            rounds[record.machine.processor].add(record.round)
        if len(rounds) == 1:
            return next(iter(rounds))
        return "; ".join(
            f"{name} (round{'s' * (len(each) > 1)} {', '.join(map(str, sorted(each)))})"
            for name, each in rounds.items()
        )

    @property
    def dates(self) -> tuple[str, str]:
        """When the first and the last of them was measured: ISO 8601."""
        every = [record.machine.at for record in self.records]
        return min(every), max(every)

    def of(self, case: str) -> list[Record]:
        """The rounds of a case."""
        return [record for record in self.records if record.case == case]

    def figure(self, case: str, name: str) -> Figure | None:
        """A figure of a case; None where there is none."""
        return _figure(
            value for record in self.of(case) if (value := record.figures.get(name)) is not None
        )

    def ratio(self, case: str, other: str, name: str) -> Figure | None:
        """A case's figure against another case's in the same round; None where no round has both.

        So the machine's better and worse hours, and another machine's rounds, count for both or for neither.
        """
        mine, theirs = (self._rounds(one, name) for one in (case, other))
        return _figure(mine[number] / theirs[number] for number in mine if theirs.get(number))

    def median(self, case: str, name: str) -> float | None:
        """Its median."""
        found = self.figure(case, name)
        return None if found is None else found.median

    def _rounds(self, case: str, name: str) -> dict[int, float]:
        return {
            record.round: value
            for record in self.of(case)
            if (value := record.figures.get(name)) is not None
        }

    def names(self) -> list[str]:
        """All figures that any record has."""
        return list(dict.fromkeys(name for record in self.records for name in record.figures))


def _figure(values: Iterable[float]) -> Figure | None:
    found = list(values)
    if not found:
        return None
    return Figure(statistics.median(found), min(found), max(found), len(found))


def summarise(records: Iterable[Record]) -> Summary | None:
    """Of the setting that has the longest rounds, and of several the latest; None of nothing."""
    every = list(records)
    if not every:
        return None
    kept = _of_one_machine_each_round(_latest_setting(every))
    return Summary(every[0].experiment, tuple(kept), len(every) - len(kept))


def page(experiment: Experiment, read: Read) -> Summary | None:
    """What is read on an experiment's page: its own records, and those of other homes that belong there.

    None where it has no records of its own. Cases come in the experiment's order, under its names; those that
    it does not have any more come last. A round that two machines began is the one's that has more of it.
    """
    every = read(experiment.name)
    if not every:
        return None
    own = _latest_setting(every)
    setting = _setting(own[0])
    cases = experiment.every(_settings(own[0]))
    records: list[Record] = []
    for case in cases:
        known = own if case.home in ("", experiment.name) else read(case.home)
        found = _longest([one for one in known if one.case == case.name], setting)
        records += (replace(one, case=case.label) for one in found)
    names = {case.name for case in cases}
    records += (one for one in own if one.case not in names)
    records = _of_one_machine_each_round(records)
    beside = {
        case.label: (
            case.paper.label if case.paper else "",
            case.strict.label if case.strict else "",
        )
        for case in cases
    }
    left_out = len(every) - sum(record.experiment == experiment.name for record in records)
    return Summary(experiment.name, tuple(records), left_out, beside)


def _of_one_machine_each_round(records: Sequence[Record]) -> list[Record]:
    """Of each round those of the machine that has most of its cases; of equal ones the one measured last."""
    cases: defaultdict[int, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    latest: defaultdict[tuple[int, str], str] = defaultdict(str)
    for record in records:
        machine = record.machine.processor
        cases[record.round][machine].add(record.case)
        latest[record.round, machine] = max(latest[record.round, machine], record.machine.at)
    chosen = {
        number: max(machines, key=lambda one: (len(machines[one]), latest[number, one]))
        for number, machines in cases.items()
    }
    return [record for record in records if record.machine.processor == chosen[record.round]]


def _latest_setting(records: Sequence[Record]) -> list[Record]:
    """Those of the setting that has the longest rounds, and of several the latest."""
    longest = max(records, key=lambda one: (_minutes(one), one.machine.at))
    return _longest(records, _setting(longest))


def _longest(records: Sequence[Record], setting: tuple[Parameter, ...]) -> list[Record]:
    """Those of that setting, and of each case on each machine the longest rounds."""
    fitting = [record for record in records if _setting(record) == setting]
    longest: defaultdict[tuple[str, str], float] = defaultdict(float)
    for record in fitting:
        key = record.case, record.machine.processor
        longest[key] = max(_minutes(record), longest[key])
    return [
        record
        for record in fitting
        if _minutes(record) == longest[record.case, record.machine.processor]
    ]


def _setting(record: Record) -> tuple[Parameter, ...]:
    return tuple(record.parameters.get(name) for name in SETTINGS)


def _minutes(record: Record) -> float:
    minutes = record.parameters.get(MINUTES)
    return float(minutes) if isinstance(minutes, int | float) else 0.0


def _settings(record: Record) -> Settings:
    """What a record was measured with."""
    scale, seed, engine = _setting(record)
    usual = Settings()
    return Settings(
        minutes=_minutes(record) or usual.minutes,
        scale=float(scale) if isinstance(scale, int | float) else usual.scale,
        seed=seed if isinstance(seed, int) else usual.seed,
        engine=Engine(engine) if isinstance(engine, str) else usual.engine,
    )


def number(value: float | None) -> str:
    """For people: three digits, and none behind the point where there are as many before."""
    if value is None:
        return "-"
    if value == 0.0 or abs(value) >= 100.0:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(figure: Figure | None) -> str:
    """Median, and least to largest where there were several rounds."""
    if figure is None:
        return "-"
    text = number(figure.median)
    if figure.rounds > 1:
        text += f" ({number(figure.least)}..{number(figure.largest)})"
    return text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, its first column to the left and the others to the right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)]
