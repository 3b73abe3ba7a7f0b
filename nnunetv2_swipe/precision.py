"""Which numerical precision is used where."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

AMP_VARIABLE = "SWIPE_AMP"
_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_ALLOWED = {"cpu": ("auto", "off", "bf16"), "cuda": ("auto", "off", "bf16", "fp16")}


@torch.compiler.assume_constant_result
def amp_dtype(device_type: str) -> torch.dtype | None:
    """The reduced precision of the network's matrix products and convolutions; None: float32.

    On the CPU bfloat16 where it multiplies such matrices in hardware (AMX, AVX-512 BF16); on CUDA bfloat16 from compute
    capability 8 on, else float16; on other devices none. The environment variable SWIPE_AMP overrides it: "off",
    "bf16", or on CUDA "fp16".

    Raises:
        ValueError: SWIPE_AMP has another value.
    """
    if device_type not in _ALLOWED:
        return None
    choice, allowed = os.environ.get(AMP_VARIABLE, "auto").lower(), _ALLOWED[device_type]
    if choice not in allowed:
        values = ", ".join(f'"{a}"' for a in allowed)
        raise ValueError(f"The environment variable {AMP_VARIABLE} is {choice!r}; allowed on {device_type}: {values}.")
    if choice != "auto":
        return _DTYPES[choice]
    if device_type == "cuda":
        native = torch.version.hip is not None or torch.cuda.get_device_capability()[0] >= 8
        return torch.bfloat16 if native else torch.float16
    questions = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return torch.bfloat16 if any(getattr(torch.cpu, name, bool)() for name in questions) else None


@contextmanager
def forced_precision(choice: str) -> Iterator[None]:
    """Context in which SWIPE_AMP has another value."""
    before = os.environ.get(AMP_VARIABLE)
    os.environ[AMP_VARIABLE] = choice
    try:
        yield
    finally:
        if before is None:
            del os.environ[AMP_VARIABLE]
        else:
            os.environ[AMP_VARIABLE] = before


def network_precision(device: torch.device) -> AbstractContextManager:
    """Context of the network: reduced precision as `amp_dtype` says, whatever context it is called in."""
    if device.type not in _ALLOWED:
        return nullcontext()
    dtype = amp_dtype(device.type)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def full_precision(device: torch.device) -> AbstractContextManager:
    """Context for coordinates and tables, which need float32 even under autocast."""
    return torch.autocast(device.type, enabled=False) if device.type in _ALLOWED else nullcontext()
