"""CPU limits on sample trees of both versions, and on this machine where it allows them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cgroup import CpuLimit, limit_cpu
from deploy.supervisor import PARENT, Child, child_environment
from shared.errors import ConfigurationError

V1 = "36 35 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "37 35 0:34 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def tree(root: Path, *, mounts: str, own: str, directories: dict[str, dict[str, str]]) -> Path:
    """A `/` with just enough in it."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mounts)
    (root / "proc/self/cgroup").write_text(own)
    for directory, files in directories.items():
        path = root / directory.lstrip("/")
        path.mkdir(parents=True)
        for name, text in files.items():
            (path / name).write_text(text)
    return root


def test_version_1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        mounts=V1,
        own="9:name=systemd:/\n4:cpu,cpuacct:/box\n",
        directories={"/sys/fs/cgroup/cpu/box": {}},
    )
    limit = limit_cpu("a", 0.3, root=root)
    assert limit.directory.parent == root / "sys/fs/cgroup/cpu/box"
    assert limit.directory.name.endswith("-a")
    assert (limit.directory / "cpu.cfs_quota_us").read_text() == "30000"
    assert (limit.directory / "cpu.cfs_period_us").read_text() == "100000"


def test_a_quota_is_changed_in_place(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "cpu.cfs_quota_us").write_text("30000")
    two = tmp_path / "two"
    two.mkdir()
    assert CpuLimit(one, 0.3).changed(0.5) == CpuLimit(one, 0.5)
    assert CpuLimit(two, 0.3).changed(0.5).cpus == 0.5
    assert (one / "cpu.cfs_quota_us").read_text() == "50000"
    assert (two / "cpu.max").read_text() == "50000 100000"
    with pytest.raises(ConfigurationError, match="takes no quota"):
        CpuLimit(tmp_path / "gone", 0.3).changed(0.5)


def test_version_2_uses_the_nearest_that_hands_cpu_down(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        mounts=V2,
        own="0::/user/session\n",
        directories={"/sys/fs/cgroup/user/session": {"cgroup.subtree_control": ""}},
    )
    (root / "sys/fs/cgroup/user/cgroup.subtree_control").write_text("cpu memory")
    limit = limit_cpu("a", 1.5, root=root)
    assert limit.directory.parent == root / "sys/fs/cgroup/user"
    assert (limit.directory / "cpu.max").read_text() == "150000 100000"


def test_version_2_root_is_asked_to_hand_cpu_down(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        mounts=V2,
        own="0::/\n",
        directories={
            "/sys/fs/cgroup": {"cgroup.subtree_control": "", "cgroup.controllers": "cpu io"}
        },
    )
    limit = limit_cpu("a", 0.5, root=root)
    assert (root / "sys/fs/cgroup/cgroup.subtree_control").read_text() == "+cpu"
    assert limit.directory.parent == root / "sys/fs/cgroup"


def test_cgroup_of_a_container_is_the_mount(tmp_path: Path) -> None:
    # /proc/self/cgroup names the host's path, the mount shows ours as its root.
    root = tree(
        tmp_path,
        mounts=V1.replace("0:33 /", "0:33 /docker/abc"),
        own="4:cpu,cpuacct:/docker/abc\n",
        directories={"/sys/fs/cgroup/cpu": {}},
    )
    assert limit_cpu("a", 0.5, root=root).directory.parent == root / "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("mounts", "own", "match"),
    [
        ("", "", "no cgroup file system"),
        (V2, "0::/user\n", "does not hand the cpu controller down"),
    ],
)
def test_refusal_says_why(tmp_path: Path, mounts: str, own: str, match: str) -> None:
    directories = {"/sys/fs/cgroup/user": {"cgroup.subtree_control": ""}}
    root = tree(tmp_path, mounts=mounts, own=own, directories=directories)
    with pytest.raises(ConfigurationError, match=match) as raised:
        limit_cpu("a", 0.5, root=root)
    assert "leave --cpus out" in str(raised.value)


def test_refusal_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, mounts=V1, own="4:cpu:/\n", directories={"/sys/fs/cgroup/cpu": {}})

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("deploy.cgroup._set_quota", refuse)
    with pytest.raises(ConfigurationError, match="Operation not permitted"):
        limit_cpu("a", 0.5, root=root)
    assert list((root / "sys/fs/cgroup/cpu").iterdir()) == []


def test_what_the_dead_left_is_swept(tmp_path: Path) -> None:
    root = tree(tmp_path, mounts=V1, own="4:cpu:/\n", directories={"/sys/fs/cgroup/cpu": {}})
    parent = root / "sys/fs/cgroup/cpu"
    left, alive, strange = (
        parent / name for name in ("amp4ec-999999999-x-a", f"amp4ec-{os.getpid()}-x-a", "other")
    )
    for directory in (left, alive, strange):
        directory.mkdir()
    limit_cpu("a", 0.5, root=root)
    assert not left.exists()
    assert alive.exists()
    assert strange.exists()


@pytest.fixture
def limit() -> Iterator[CpuLimit]:
    try:
        limit = limit_cpu("test", 0.2)
    except ConfigurationError as error:
        pytest.skip(str(error))
    yield limit
    limit.remove()
    assert not limit.directory.exists()


def test_limit_holds_from_the_start(limit: CpuLimit) -> None:
    program = textwrap.dedent("""
        import time
        began = time.monotonic()
        while time.monotonic() - began < 1.0: pass
        print(time.process_time())
    """)
    out = subprocess.run(
        limit.wrap([sys.executable, "-c", program]), check=True, capture_output=True, text=True
    )
    # 0.2 CPU for 1 s; starting counts, too, and the last period may be begun.
    assert float(out.stdout) < 0.4


def test_removal_ends_what_is_left_inside(limit: CpuLimit) -> None:
    sleeper = subprocess.Popen(limit.wrap(["sleep", "60"]))
    deadline = time.monotonic() + 10
    while str(sleeper.pid) not in (limit.directory / "cgroup.procs").read_text().split():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    limit.remove()
    assert sleeper.wait() == -signal.SIGKILL


async def test_child_keeps_its_pid_and_its_cgroup_goes(tmp_path: Path, limit: CpuLimit) -> None:
    child = await Child.start(
        "x", ["broker", "--port", "1", "--bind", "192.0.2.1"], tmp_path / "log", limit=limit
    )
    await child.process.wait()
    assert await child.stop() != 0
    assert not limit.directory.exists()
    assert "192.0.2.1" in child.log_tail()


def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    """The middle process is killed without warning; the child of ours must follow."""
    program = textwrap.dedent("""
        import os, subprocess, sys, time
        from deploy.supervisor import child_environment
        inner = "import time; from deploy.supervisor import follow_parent; follow_parent(); "
        inner += "print(1, flush=True); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", inner], env=child_environment(),
                                 stdout=subprocess.PIPE)
        child.stdout.readline()
        print(child.pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=child_environment(), text=True
    ) as middle:
        assert middle.stdout is not None
        pid = int(middle.stdout.readline())
        middle.kill()
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def test_child_of_a_parent_that_died_before() -> None:
    program = "from deploy.supervisor import follow_parent; follow_parent(); print('still here')"
    environment = {**child_environment(), PARENT: "1"}
    if os.getpid() == 1:
        pytest.skip("we are process 1")
    out = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    assert out.returncode == -signal.SIGTERM
    assert out.stdout == b""


async def test_stop_kills_what_does_not_listen(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); "
    program += "print('deaf', flush=True); time.sleep(60)"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=output)
    child = Child("deaf", process, log)
    async with asyncio.timeout(10):
        while b"deaf" not in log.read_bytes():  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.01)
    assert await child.stop(timeout_s=0.2) == -signal.SIGKILL
    assert not child.alive


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
