"""What is recorded of the machine that figures were measured on."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploy.machine import commit_of


def test_a_commit_is_marked_where_its_code_was_changed_and_not_where_figures_came(
    tmp_path: Path,
) -> None:
    assert commit_of(tmp_path) == "unknown"

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=A", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    code, data = tmp_path / "deep" / "code.py", tmp_path / "data.jsonl"
    code.parent.mkdir()
    code.write_text("a = 1\n")
    data.write_text("{}\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "--short", "HEAD")
    assert commit_of(tmp_path) == commit
    data.write_text("{}\n{}\n")
    assert commit_of(tmp_path) == commit
    code.write_text("a = 2\n")
    assert commit_of(tmp_path) == f"{commit}-dirty"
