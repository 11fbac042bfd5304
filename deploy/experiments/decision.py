"""What the figures come to for somebody who has to decide, in sentences made of the records alone."""

from __future__ import annotations

from deploy.experiments import paper
from deploy.experiments.baseline import PAPER, STRICT
from deploy.experiments.summary import Summary, number, spread
from deploy.experiments.verdicts import INT8, OURS, Summaries, named, sound_ratio

_CACHED = "AMP4EC + cache"
_LEVEL = 0.02
"""Two figures that differ by less are called level."""


def decision(found: Summaries) -> list[str]:
    """A sentence each for speed, memory, cache, int8, losses, thin links, other models and peers."""
    said: list[str] = []
    if (table := found.get("table-1")) is not None:
        said += _speed(table)
        said += _memory(table)
        said += _cache(table)
    if (systems := found.get("table-1-systems")) is not None:
        said += _int8(systems)
    if (change := found.get("change")) is not None:
        said += _change(change)
    if (links := found.get("ablation-compression")) is not None:
        said += _links(links)
    if (models := found.get("models")) is not None:
        said += _models(models)
    if (peers := found.get("peers")) is not None:
        said += _peers(peers)
    return said


def _speed(table: Summary) -> list[str]:
    strict = STRICT["onnxruntime"].name
    in_all, alone, split = (
        _ratio(table, ours, other)
        for ours, other in ((OURS, PAPER.name), (strict, PAPER.name), (OURS, strict))
    )
    said = []
    if in_all is not None and alone is not None and split is not None:
        said.append(
            "Against the paper's baseline (PyTorch as it comes, batches of 32, the same CPU in all) the "
            f"cluster answers {number(in_all)} times as many images, cache off. The runtime alone, in one "
            f"process, gives {number(alone)} times; spread over the devices {number(split)} of that is left. "
            + ("Splitting gains nothing here; " if split <= 1.0 else "")
            + "what it is for is memory, and devices that are lost."
        )
    for case, cache in ((OURS, "off"), (_CACHED, "on")):
        latency = _ratio(table, case, PAPER.name, "latency_ms")
        rate = _ratio(table, case, PAPER.name)
        if latency is not None and rate is not None:
            said.append(
                f"In the paper's terms (its headline, cache on, is {paper.HEADLINE}), cache {cache}: "
                f"{latency - 1:+.0%} latency of a batch of 32, {rate - 1:+.0%} throughput."
            )
    return said


def _memory(table: Summary) -> list[str]:
    ours, whole = (table.median(case, "memory_mb") for case in (OURS, STRICT["onnxruntime"].name))
    if ours is None or whole is None:
        return []
    text = (
        f"The devices' processes have {number(ours)} MB in all, one process with the same runtime "
        f"{number(whole)} MB: every device pays for Python and the runtime once."
    )
    return [text]


def _cache(table: Summary) -> list[str]:
    ratio, share = _ratio(table, _CACHED, OURS), table.median(_CACHED, "cached_ratio")
    if ratio is None or share is None:
        return []
    text = (
        f"With the result cache on, a stream in which {share:.0%} of the images had come before is answered "
        f"{number(ratio)} times as fast as without; where no image comes twice it gives nothing."
    )
    return [text]


def _int8(systems: Summary) -> list[str]:
    ratio, exact = _ratio(systems, INT8, OURS), systems.median(INT8, "exact_ratio")
    if ratio is None:
        return []
    mark = "; its answers are marked as not exact" if exact == 0.0 else ""
    return [f"int8 is {number(ratio)} times as fast as exact answers{mark}."]


def _change(change: Summary) -> list[str]:
    said = []
    for case in change.cases:
        silence, lost = change.figure(case, "silence_s"), change.figure(case, "lost")
        if silence is None or lost is None:
            continue
        before, after = (change.median(case, f"{when}_per_s") for when in ("before", "after"))
        said.append(
            f"{case[0].upper()}{case[1:]}: {number(before)} images/s before, {number(after)} after; the "
            f"longest silence was {number(silence.largest)} s, {number(lost.largest)} images had no answer."
        )
    return said


def _links(links: Summary) -> list[str]:
    rates = {case: links.median(case, "throughput_per_s") for case in links.cases}
    none = rates.get("none")
    others = [
        f"{number(rate)} with {case}"
        for case, rate in rates.items()
        if case.startswith("auto") and rate is not None
    ]
    if not none or not others:
        return []
    text = f"Over links of 10 Mbit/s three stages answer {number(none)} images/s uncompressed, "
    return [text + " and ".join(others) + "."]


def _models(models: Summary) -> list[str]:
    ratios = {
        case.split(":")[0]: ratio
        for case in models.cases
        if case.endswith(": AMP4EC")
        and (ratio := _ratio(models, case, models.beside.get(case, ("", ""))[1])) is not None
    }
    if not ratios:
        return []
    each = ", ".join(f"{name} {number(ratio)}" for name, ratio in ratios.items())
    return [
        f"Of what one process with the same CPU and runtime answers, the cluster answers: {each}."
    ]


def _peers(peers: Summary) -> list[str]:
    back = [case for case in peers.cases if peers.median(case, "came_back") == 1.0]
    stopped = [case for case in peers.cases if peers.median(case, "came_back") == 0.0]
    said = []
    if back:
        times = ", ".join(
            f"{case} after {number(peers.median(case, 'recovery_s'))} s" for case in back
        )
        said.append(f"When the middle stage is killed, these answer again by themselves: {times}.")
    if stopped:
        said.append(f"These do not: {', '.join(stopped)}.")
    for case in peers.cases:
        if not named(case):
            continue
        ratios = [
            (other, ratio)
            for other in peers.cases
            if not named(other)
            and (ratio := sound_ratio(peers, case, other)) is not None
            and abs(ratio.median - 1.0) > _LEVEL
        ]
        if ratios:
            each = ", ".join(f"{spread(ratio)} x {other}" for other, ratio in ratios)
            said.append(f"{case} answers {each}.")
    return said


def _ratio(
    summary: Summary, ours: str, other: str, figure: str = "throughput_per_s"
) -> float | None:
    """Its median, for sentences that give no spread."""
    ratio = sound_ratio(summary, ours, other, figure)
    return None if ratio is None else ratio.median
