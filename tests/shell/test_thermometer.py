"""The CPU's temperature, from trees such as a Raspberry Pi and a PC have them."""

from __future__ import annotations

from pathlib import Path

from edge_agent.probe import Probe
from edge_agent.thermometer import Thermometer
from tests.shell.test_probe import tree


def test_a_raspberry_pi(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    root = tree(tmp_path, {f"{zone}/type": "cpu-thermal\n", f"{zone}/temp": "48686\n"})
    assert Thermometer(root).read_c() == 48.686
    assert Probe(root).sample().temperature_c == 48.686


def test_the_cpu_and_not_the_disk_or_the_battery(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "acpitz\n",
            "sys/class/thermal/thermal_zone0/temp": "20000\n",
            "sys/class/hwmon/hwmon0/name": "nvme\n",
            "sys/class/hwmon/hwmon0/temp1_input": "33000\n",
            "sys/class/hwmon/hwmon1/name": "k10temp\n",
            "sys/class/hwmon/hwmon1/temp1_input": "61250\n",
        },
    )
    assert Thermometer(root).read_c() == 61.25


def test_no_sensor_one_that_lies_and_one_that_goes(tmp_path: Path) -> None:
    assert Thermometer(tmp_path).read_c() is None
    zone = "sys/class/thermal/thermal_zone0"
    thermometer = Thermometer(
        tree(tmp_path, {f"{zone}/type": "cpu-thermal", f"{zone}/temp": "-274000"})
    )
    assert thermometer.read_c() is None
    (tmp_path / zone / "temp").write_text("what?")
    assert thermometer.read_c() is None
    (tmp_path / zone / "temp").unlink()
    assert thermometer.read_c() is None
