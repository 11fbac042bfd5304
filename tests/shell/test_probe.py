"""Limits read from sample trees of both cgroup versions, and use measured on this very process."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge_agent.cgroup import Cgroups
from edge_agent.probe import Probe

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, path: str, files: dict[str, str]) -> Path:
    return tree(
        root,
        {
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": V2_MOUNT,
            "proc/meminfo": "MemTotal:        8000000 kB\n",
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        },
    )


def test_v2_quota_and_memory(tmp_path: Path) -> None:
    root = v2(
        tmp_path,
        "/app",
        {
            "app/cpu.max": "40000 100000\n",
            "app/memory.max": "512000000\n",
            "app/memory.current": "300000000\n",
            "app/memory.stat": "anon 1\ninactive_file 100000000\nactive_file 5\n",
        },
    )
    quota = Cgroups(root).cpu_quota()
    assert quota is not None
    assert quota.cpus == pytest.approx(0.4)
    assert quota.period_s == pytest.approx(0.1)
    assert quota.source.endswith("app/cpu.max")
    memory = Cgroups(root).memory_limit()
    assert memory is not None
    assert (memory.limit_bytes, memory.used_bytes) == (512000000, 200000000)


def test_v2_tightest_of_the_path_counts(tmp_path: Path) -> None:
    root = v2(
        tmp_path,
        "/a/b/c",
        {"a/cpu.max": "20000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "50000 50000"},
    )
    quota = Cgroups(root).cpu_quota()
    assert quota is not None
    assert quota.cpus == pytest.approx(0.2)


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense", "0 100000", "100000 0"])
def test_v2_no_quota(tmp_path: Path, text: str) -> None:
    root = v2(tmp_path, "/app", {"app/cpu.max": text})
    assert Cgroups(root).cpu_quota() is None
    assert Cgroups(root).memory_limit() is None


def test_container_sees_its_own_cgroup_as_the_mount(tmp_path: Path) -> None:
    """Without a cgroup namespace the path is the host's, below the mount's root or not at all."""
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "proc/self/mountinfo": "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
            "sys/fs/cgroup/cpu.max": "30000 100000",
        },
    )
    quota = Cgroups(root).cpu_quota()
    assert quota is not None
    assert quota.cpus == pytest.approx(0.3)
    (root / "proc/self/cgroup").write_text("0::/../other\n")
    quota = Cgroups(root).cpu_quota()
    assert quota is not None
    assert quota.cpus == pytest.approx(0.3)


def test_v1_quota_and_memory(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/app\n3:cpu,cpuacct:/app/deep\n1:name=systemd:/\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "proc/meminfo": "MemTotal:        8000000 kB\n",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "25000\n",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/app/deep/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/app/deep/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
            "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "256000000\n",
            "sys/fs/cgroup/memory/app/memory.usage_in_bytes": "200000000\n",
            "sys/fs/cgroup/memory/app/memory.stat": "total_inactive_file 50000000\n",
        },
    )
    quota = Cgroups(root).cpu_quota()
    assert quota is not None
    assert quota.cpus == pytest.approx(0.5)
    assert quota.period_s == pytest.approx(0.05)
    assert Probe(root, affinity=4).memory() == (150000000, 256000000)


def test_nothing_to_read(tmp_path: Path) -> None:
    assert Cgroups(tmp_path).cpu_quota() is None
    share = Probe(tmp_path, affinity=3).share()
    assert share.cpus == 3.0


def test_share_is_the_tightest_of_quota_and_affinity(tmp_path: Path) -> None:
    root = v2(tmp_path, "/app", {"app/cpu.max": "150000 100000"})
    by_quota = Probe(root, affinity=4).share()
    assert (by_quota.cpus, by_quota.cores) == (1.5, 4)
    assert by_quota.limited_by.endswith("cpu.max")
    by_affinity = Probe(root, affinity=1).share()
    assert by_affinity.cpus == 1.0


def test_declared_share_counts_where_it_is_the_tightest(tmp_path: Path) -> None:
    root = v2(tmp_path, "/app", {"app/cpu.max": "150000 100000"})
    declared = Probe(root, affinity=4, declared_cpus=0.5)
    assert (declared.share().cpus, declared.share().limited_by) == (0.5, "declared")
    assert declared.hardware().cpu == 0.5
    too_much = Probe(root, affinity=4, declared_cpus=3.0).share()
    assert too_much.cpus == 1.5
    assert too_much.limited_by.endswith("cpu.max")


def test_changed_quota_is_seen(tmp_path: Path) -> None:
    root = v2(tmp_path, "/app", {"app/cpu.max": "50000 100000"})
    probe = Probe(root, affinity=4)
    assert probe.share().cpus == 0.5
    (root / "sys/fs/cgroup/app/cpu.max").write_text("20000 100000")
    assert probe.share().cpus == 0.2


def test_samples_go_by_changed_limits_soon_but_read_them_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {
        "app/cpu.max": "50000 100000",
        "app/memory.max": "512000000",
        "app/memory.current": "300000000",
        "app/memory.stat": "inactive_file 0\n",
    }
    root = v2(tmp_path, "/app", limits)
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = clock.process_time = lambda: clock.now
    monkeypatch.setattr("edge_agent.probe.time", clock)
    probe = Probe(root, affinity=4)
    clock.now += 1.0  # one second of CPU in a second
    first = probe.sample()
    assert first.cpu_percent == pytest.approx(200.0)
    assert (first.memory_used_bytes, first.memory_limit_bytes) == (300000000, 512000000)
    (root / "sys/fs/cgroup/app/cpu.max").write_text("25000 100000")
    (root / "sys/fs/cgroup/app/memory.current").write_text("400000000")
    clock.now += 1.0
    second = probe.sample()
    assert second.cpu_percent == pytest.approx(200.0), "not read anew in each sample"
    assert second.memory_used_bytes == 400000000, "what is used is"
    clock.now += 5.0
    assert probe.sample().cpu_percent == pytest.approx(400.0)


def test_hardware_of_a_board(tmp_path: Path) -> None:
    root = v2(
        tmp_path,
        "/",
        {"memory.max": "max"},
    )
    tree(root, {"sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    hardware = Probe(root, affinity=4).hardware()
    assert hardware.cpu_model == "Raspberry Pi 4 Model B Rev 1.4"
    assert hardware.memory_bytes == 8000000 * 1024
    assert hardware.cores == 4
    assert hardware.architecture


def test_use_is_relative_to_the_share(tmp_path: Path) -> None:
    """A process that may use 0.1 CPU and uses up to a whole one reads far above 100, not below."""
    root = v2(tmp_path, "/app", {"app/cpu.max": "10000 100000"})
    probe = Probe(root, affinity=4)
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    usage = probe.sample()
    assert usage.cpu_percent > 100
    assert usage.stability == 1.0
    assert 0 < usage.memory_used_bytes < usage.memory_limit_bytes


def test_this_machine() -> None:
    hardware = Probe().hardware()
    assert 0 < hardware.cpu <= hardware.cores
    assert hardware.memory_bytes > 0


def test_available_memory_is_what_others_leave(tmp_path: Path) -> None:
    rss = psutil.Process().memory_info().rss
    limited = v2(
        tmp_path / "limited",
        "/app",
        {
            "app/memory.max": str(10**10),
            "app/memory.current": str(4 * 10**9),
            "app/memory.stat": "inactive_file 1000000000\n",
        },
    )
    (limited / "proc/meminfo").write_text("MemTotal: 20000000 kB\nMemAvailable: 15000000 kB\n")
    assert Probe(limited).sample().memory_available_bytes == pytest.approx(7 * 10**9 + rss, abs=2e7)
    (limited / "proc/meminfo").write_text("MemTotal: 20000000 kB\nMemAvailable: 1000000 kB\n")
    assert Probe(limited).sample().memory_available_bytes == pytest.approx(
        1024 * 10**6 + rss, abs=2e7
    )


def test_what_others_use_of_the_machine(tmp_path: Path) -> None:
    stat = tmp_path / "proc/stat"
    stat.parent.mkdir(parents=True)
    stat.write_text("cpu  1000 0 1000 8000 0 0 0 0 500 0\ncpu0 ...\n")
    probe = Probe(tmp_path)
    stat.write_text("cpu  11000 0 1000 18000 0 0 0 0 900 0\ncpu0 ...\n")
    assert probe.sample().cpu_others_ratio == pytest.approx(0.5, abs=0.02)
    assert probe.sample().cpu_others_ratio is None, "no time has passed there"
    stat.write_text("nonsense\n")
    assert probe.sample().cpu_others_ratio is None
    stat.unlink()
    assert probe.sample().cpu_others_ratio is None
