"""Which numerical precision is used where."""

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
        native = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return torch.bfloat16 if any(getattr(torch.cpu, name, bool)() for name in native) else None
    return torch.bfloat16 if choice == "bf16" else None


def network_precision(device: torch.device) -> AbstractContextManager:
    """Context of the network: reduced precision on the CPU; elsewhere nnU-Net's own autocast decides."""
    dtype = cpu_amp_dtype() if device.type == "cpu" else None
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


def full_precision(device: torch.device) -> AbstractContextManager:
    """Context for coordinates, which need float32 even under autocast (nnU-Net uses none on other devices)."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()
