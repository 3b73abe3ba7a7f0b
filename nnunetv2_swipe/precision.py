"""Which numerical precision the CPU computes in."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

AMP_VARIABLE = "SWIPE_AMP"


@cache
def cpu_amp_dtype() -> torch.dtype | None:
    """bfloat16 where the CPU multiplies bfloat16 matrices in hardware, else None (float32).

    The environment variable SWIPE_AMP overrides it: "bf16" or "off".

    Raises:
        ValueError: SWIPE_AMP has another value.
    """
    choice = os.environ.get(AMP_VARIABLE, "auto").lower()
    if choice not in ("auto", "bf16", "off"):
        raise ValueError(f'The environment variable {AMP_VARIABLE} is {choice!r}; allowed: "auto", "bf16", "off".')
    if choice == "auto":
        return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None
    return torch.bfloat16 if choice == "bf16" else None


def cpu_autocast() -> AbstractContextManager:
    """Autocast context for computations on the CPU."""
    dtype = cpu_amp_dtype()
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
