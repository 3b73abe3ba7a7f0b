"""What fits into main memory."""

from nnunetv2_swipe.limits import main_memory


def spare_memory() -> float:
    """Bytes that what is kept for speed alone may take: half of `main_memory`."""
    return main_memory() / 2


def require_memory(n_bytes: float, what: str) -> None:
    """ValueError if something takes more than the main memory that this job may use."""
    memory = main_memory()
    if n_bytes > memory:
        raise ValueError(
            f"{what} would take {n_bytes / 1e9:,.1f} GB of memory, and this job may use {memory / 1e9:,.1f} GB. "
            "Ask for a coarser grid."
        )
