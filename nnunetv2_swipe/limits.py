"""What this job may use of the machine: processors and main memory."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEGABYTE = 2**20  # SLURM's


def available_cpus() -> int:
    """Processors that this job may use, at least 1.

    The least of those that the process may run on (``taskset``), the quotas of its control groups (containers, systemd,
    SLURM), and ``SLURM_CPUS_PER_TASK``.
    """
    try:
        found = [len(os.sched_getaffinity(0))]
    except AttributeError:  # macOS, Windows
        found = [os.cpu_count() or 1]
    found += _cpus_of_control_groups()
    found += _from_environment("SLURM_CPUS_PER_TASK")
    return max(1, min(found))


def available_threads() -> int:
    """Threads that one process of this job should compute with: ``OMP_NUM_THREADS``, `available_cpus` at most."""
    return min([available_cpus(), *_from_environment("OMP_NUM_THREADS")])


def main_memory() -> float:
    """Bytes of main memory that this job may use; infinite where the system does not tell.

    The least of the machine's memory, the limits of the process's control groups (containers, systemd, SLURM),
    ``SLURM_MEM_PER_NODE``, ``SLURM_MEM_PER_CPU`` of the job's processors, and ``ulimit -v``.
    """
    found: list[float] = [math.inf]
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    found += _memory_of_control_groups()
    found += [_MEGABYTE * size for size in _from_environment("SLURM_MEM_PER_NODE")]
    n_cpus = min(_from_environment("SLURM_CPUS_ON_NODE") or [available_cpus()])
    found += [_MEGABYTE * size * n_cpus for size in _from_environment("SLURM_MEM_PER_CPU")]
    if resource is not None:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        found += [limit] if limit != resource.RLIM_INFINITY else []
    return min(found)


def _from_environment(variable: str) -> list[int]:
    """The positive number that an environment variable holds, or the first of several ("4,2"), if there is one."""
    text = os.environ.get(variable, "").split(",")[0].strip()
    return [int(text)] if text.isdecimal() and int(text) > 0 else []


def _cpus_of_control_groups() -> list[int]:
    """Whole processors that each control group of the process may use all the time, where that is limited."""
    found = []
    for group in _control_groups("cpu"):
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            quota, period = map(int, (group / "cpu.max").read_text().split())
            found.append(quota // period)
        with suppress(OSError, ValueError):
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            found += [quota // period] if quota > 0 else []  # -1: no limit
    return found


def _memory_of_control_groups() -> list[int]:
    """Bytes that each control group of the process may take, where that is limited."""
    found = []
    for group in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                found.append(int((group / name).read_text()))
    return found


def _control_groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that the process is in: its own, and all those around it.

    Version 2 of Linux's control groups has one tree of folders, version 1 one for each controller. A container may see
    only its own part of a tree; then some of the folders do not exist.
    """
    try:
        lines = _GROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = _CONTROL_GROUPS / controller if controllers else _CONTROL_GROUPS
        yield folder
        for name in path.split("/"):
            if name not in ("", ".."):  # "..": outside of what the container may see
                folder /= name
                yield folder
