"""A picture of a soak: memory and open files of every process, what is retained, what waits."""

from __future__ import annotations

from pathlib import Path

from deploy.drawing import INK, PALETTE, figure, plain, save
from tests.cluster.soak.run import Soak


def draw_soak(soak: Soak, path: Path) -> None:
    """Draw it into `path`, in the format that its name says."""
    picture = figure(13.0, 9.0)
    memory, files, outside = (
        plain(axes) for axes in picture.subplots(3, 1, sharex=True, squeeze=True)
    )
    staying = [(name, life) for name, life in soak.usage.lives() if not name.startswith("guest")]
    for index, (name, life) in enumerate(staying):
        times = [held.at - soak.began_at for held in life]
        colour = PALETTE[index % len(PALETTE)]
        megabytes = [held.resident_bytes / 1e6 for held in life]
        memory.plot(times, megabytes, color=colour, lw=1.0, label=name)
        files.plot(times, [held.files for held in life], color=colour, lw=1.0)
    times = [look.at - soak.began_at for look in soak.looks]
    outside.plot(times, [look.retained for look in soak.looks], color=PALETTE[0], label="retained")
    outside.plot(times, [look.queued for look in soak.looks], color=PALETTE[1], label="queued")
    for axes, text in ((memory, "resident, MB"), (files, "open files"), (outside, "count")):
        axes.set_ylabel(text, fontsize=9, color=INK)
    memory.legend(fontsize=8, frameon=False, ncols=4)
    outside.legend(fontsize=8, frameon=False)
    outside.set_xlabel("seconds", fontsize=9, color=INK)
    save(picture, path)
