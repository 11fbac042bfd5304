"""What is installed from our wheel is typed for the programs that use it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

TOP = Path(__file__).parents[2]
PROGRAM = """
from amp4ec import Client, SyncClient

async def program(client: Client) -> None:
    result = await client.infer("m", "cat.jpg")
"""


def test_a_typed_program_may_import_the_facade(tmp_path: Path) -> None:
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=TOP, check=True)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "program.py").write_text(PROGRAM)
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", "/dev/null"),
            # Not our own code once more, only whether it is found and typed.
            *("--follow-imports", "skip"),
            *("--python-executable", environment / "bin" / "python", "program.py"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
