"""What fits into main memory."""

import math
import os


def main_memory() -> float:
    """Bytes of the machine's main memory; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def require_memory(n_bytes: float, what: str) -> None:
    """ValueError if something takes more than the machine's main memory."""
    memory = main_memory()
    if n_bytes > memory:
        raise ValueError(
            f"{what} would take {n_bytes / 1e9:,.1f} GB of memory, and there are {memory / 1e9:,.1f} GB. Ask for a "
            "coarser grid."
        )
