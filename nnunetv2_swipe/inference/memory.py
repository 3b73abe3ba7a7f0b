"""What fits into main memory."""

import contextlib
import math
import os
from pathlib import Path

_LIMITS_OF_CONTAINERS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def main_memory() -> float:
    """Bytes of main memory, or what a container may use of it; infinite where the system does not tell."""
    found = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _LIMITS_OF_CONTAINERS:
        with contextlib.suppress(ValueError, OSError):  # "max": none
            found.append(int(Path(file).read_text()))
    return min(found)


def spare_memory() -> float:
    """Bytes that what is kept for speed alone may take: half of `main_memory`."""
    return main_memory() / 2


def require_memory(n_bytes: float, what: str) -> None:
    """ValueError if something takes more than the machine's main memory."""
    memory = main_memory()
    if n_bytes > memory:
        raise ValueError(
            f"{what} would take {n_bytes / 1e9:,.1f} GB of memory, and there are {memory / 1e9:,.1f} GB. Ask for a "
            "coarser grid."
        )
