"""How hot the CPU is, as the kernel tells: thermal zones (a Raspberry Pi), else hardware monitors (a PC).

Which file it is gets looked up once: looking through all sensors each second costs more than the rest of a
sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ZONES: Final = ("cpu-thermal", "cpu_thermal", "x86_pkg_temp", "soc-thermal", "soc_thermal")
"""Types of thermal zones that are the CPU's, the best first."""
_MONITORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_LOWEST_C, _HIGHEST_C = -50.0, 150.0
"""Sensors that are absent or broken say 0 K, -274 or 255."""


class Thermometer:
    """Reads one file. `root` stands for `/`, so that tests can bring their own tree."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = _zone(root / "sys/class/thermal") or _monitor(root / "sys/class/hwmon")

    def read_c(self) -> float | None:
        """Degrees Celsius now; None where the kernel has no such sensor, or it says nonsense."""
        if self._file is None:
            return None
        try:
            celsius = int(self._file.read_text()) / 1000
        except (OSError, ValueError):
            return None
        return celsius if _LOWEST_C < celsius < _HIGHEST_C else None


def _zone(directory: Path) -> Path | None:
    kinds = {
        _text(zone / "type"): zone / "temp" for zone in sorted(directory.glob("thermal_zone*"))
    }
    return next((kinds[kind] for kind in _ZONES if kind in kinds), None)


def _monitor(directory: Path) -> Path | None:
    names = {
        _text(each / "name"): each / "temp1_input" for each in sorted(directory.glob("hwmon*"))
    }
    return next((names[name] for name in _MONITORS if name in names), None)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
