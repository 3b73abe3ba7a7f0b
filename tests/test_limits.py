"""Processors and memory that a job may use, on files and variables as Linux and SLURM set them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunetv2_swipe import limits
from nnunetv2_swipe.commands.common import choose_device
from nnunetv2_swipe.inference import memory

N_CPUS, PHYSICAL = 16, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
GIGABYTE = 2**30


@pytest.fixture(autouse=True)
def groups(tmp_path, monkeypatch):
    """Factory write(groups of the process, **files) of Linux's files; a process on 16 processors without limits."""
    monkeypatch.setattr(limits, "_GROUPS_OF_PROCESS", tmp_path / "self")
    monkeypatch.setattr(limits, "_CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(N_CPUS)))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMP_"))]:
        monkeypatch.delenv(name)

    def write(of_process, files):
        (tmp_path / "self").write_text(of_process)
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return write


def test_without_limits_a_job_has_the_machine():
    assert limits.available_cpus() == limits.available_threads() == N_CPUS
    assert limits.main_memory() == PHYSICAL


def test_where_the_system_tells_nothing_all_processors_count(monkeypatch):
    """As on Windows and macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(limits, "resource", None)
    assert limits.available_cpus() == os.cpu_count()
    assert limits.main_memory() == float("inf")


@pytest.mark.parametrize(
    ("of_process", "files", "cpus", "gigabytes"),
    [
        # version 2: the job's own group, and a smaller limit on one around it
        ("0::/slurm/job/step\n", {"slurm/job/cpu.max": "450000 100000\n", "slurm/memory.max": f"{GIGABYTE}"}, 4, 1),
        ("0::/a/b", {"a/cpu.max": "max 100000", "a/b/cpu.max": "200000 100000", "a/b/memory.max": "max\n"}, 2, None),
        # a container that sees only its own part of the tree
        ("0::/\n", {"cpu.max": "50000 100000", "memory.max": f"{2 * GIGABYTE}\n"}, 1, 2),
        ("0::/../../other", {"cpu.max": "300000 100000"}, 3, None),
        ("4:memory:/docker/f00\n1:cpu,cpuacct:/docker/f00\n", {
            "memory/memory.limit_in_bytes": f"{3 * GIGABYTE}",
            "cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000",
        }, 6, 3),
        # version 1: the job's group of each controller
        ("9:name=systemd:/\n4:memory:/job\n1:cpu:/job\n0::/\n", {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/job/memory.limit_in_bytes": f"{GIGABYTE}",
            "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000",
            "cpu/job/cpu.cfs_quota_us": "250000", "cpu/job/cpu.cfs_period_us": "100000",
        }, 2, 1),
        # the limit of another group
        ("0::/mine", {"other/cpu.max": "100000 100000", "other/memory.max": "1"}, N_CPUS, None),
    ],
)  # fmt: skip
def test_limits_of_the_jobs_own_control_group(groups, of_process, files, cpus, gigabytes):
    groups(of_process, files)
    assert limits.available_cpus() == cpus
    assert limits.main_memory() == (PHYSICAL if gigabytes is None else gigabytes * GIGABYTE)


def test_processors_that_the_process_may_run_on():
    """Of the true system, in a process that `taskset` starts on one processor."""
    code = f"import sys; sys.path.insert(0, {str(Path(limits.__file__).parents[1])!r}); "
    code += "from nnunetv2_swipe.limits import available_cpus as n; print(n())"
    output = subprocess.run(
        ["taskset", "-c", "0", sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("variables", "cpus", "threads"),
    [
        ({"SLURM_CPUS_PER_TASK": "3"}, 3, 3),
        ({"OMP_NUM_THREADS": "1"}, N_CPUS, 1),  # of every process; there may be several
        ({"OMP_NUM_THREADS": "4,2"}, N_CPUS, 4),
        ({"OMP_NUM_THREADS": "99", "SLURM_CPUS_PER_TASK": "5"}, 5, 5),
        ({"OMP_NUM_THREADS": "", "SLURM_CPUS_PER_TASK": "many"}, N_CPUS, N_CPUS),
    ],
)
def test_processors_by_environment(monkeypatch, variables, cpus, threads):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (limits.available_cpus(), limits.available_threads()) == (cpus, threads)


@pytest.mark.parametrize(
    ("variables", "megabytes"),
    [
        ({"SLURM_MEM_PER_NODE": "500"}, 500),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "3"}, 300),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_PER_TASK": "2"}, 200),
        ({"SLURM_MEM_PER_NODE": "0"}, PHYSICAL / 2**20),  # all of the node
    ],
)
def test_memory_by_environment(monkeypatch, variables, megabytes):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert limits.main_memory() == megabytes * 2**20


def test_memory_by_ulimit(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: {resource.RLIMIT_AS: (12345, -1)}[which])
    assert limits.main_memory() == 2 * memory.spare_memory() == 12345
    with pytest.raises(ValueError, match=r"A map would take 0\.2 GB of memory, and this job may use 0\.0 GB"):
        memory.require_memory(2e8, "A map")


def test_commands_compute_with_the_threads_of_their_job(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    choose_device("cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    choose_device("cpu")
    assert threads == [5, 3]
