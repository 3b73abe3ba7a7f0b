"""Instruments of the benchmarks: fresh processes, memory peaks, stopwatches, what the hardware delivers."""

import functools
import multiprocessing
import platform
import re
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from nnunetv2_swipe.precision import amp_dtype

T = TypeVar("T")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def isolated(
    function: Callable[..., T],
    *arguments: Any,  # noqa: ANN401
    waiting: Callable[[], object] = lambda: None,
    **options: Any,  # noqa: ANN401
) -> T:
    """Call a module's function in a fresh process, so that neither memory nor threads of earlier work disturb it.

    `waiting` is called every ten seconds until it ends.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(function, *arguments, **options)
        while wait([future], timeout=10).not_done:
            waiting()
        return future.result()


def versions() -> str:
    """Of PyTorch, nnU-Net and this project: its commit, if it lies in a Git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        own = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        own = version("nnunetv2-swipe")
    return f"torch {torch.__version__}, nnunetv2 {version('nnunetv2')}, nnunetv2-swipe {own}"


def synchronize(device: torch.device) -> None:
    """Wait for what is queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Most memory that a process holds above what it held at the start: of the GPU, or resident in main memory (Linux).

    Attributes:
        added: Bytes at the peak above the start; set on exit.
        total: Bytes at the peak; set on exit.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.added = self.total = 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        elif not _CLEAR_REFS.exists():
            raise RuntimeError("Main memory is measured on Linux only.")
        else:
            _CLEAR_REFS.write_text("5")  # resets the peak
            self._start = _status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        on_gpu = self.device.type == "cuda"
        self.total = torch.cuda.max_memory_allocated(self.device) if on_gpu else _status_bytes("VmHWM")
        self.added = self.total - self._start


def _status_bytes(key: str) -> int:
    """A value of /proc/self/status."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class Stopwatch:
    """Adds up the seconds spent in functions, by part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, owner: object, attribute: str, part: str) -> None:
        """Time every call of `owner.attribute` as a part (replaces the attribute)."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            synchronize(self.device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(self.device)
            self.seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, attribute, timed)


def seconds_of(function: Callable[[], Any], device: torch.device, *, repeats: int = 3, limit: float = 60.0) -> float:
    """Median seconds of a call after one for warming up; a single cold call if that takes more than `limit` / 2."""
    seconds: list[float] = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > limit / 2:
            break
    return statistics.median(seconds[1:] or seconds)


def hardware(device: torch.device) -> dict[str, Any]:
    """What the machine delivers: a plain 3x3x3 convolution and a matrix product (GFLOP/s), and a copy (GB/s)."""
    result: dict[str, Any] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    reduced = amp_dtype(device.type)
    for dtype in [torch.float32, *([reduced] if reduced else [])]:
        conv = nn.Conv3d(64, 64, 3, padding=1, bias=False, device=device, dtype=dtype)
        x = torch.randn(4, 64, 32, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last_3d)
        a = torch.randn(1 << 15, 256, device=device, dtype=dtype)
        b = torch.randn(256, 256, device=device, dtype=dtype)
        copied = torch.empty_like(x)
        with torch.inference_mode():
            copy_seconds = seconds_of(functools.partial(copied.copy_, x), device)
            conv_seconds = seconds_of(functools.partial(conv, x), device)
            product_seconds = seconds_of(functools.partial(torch.mm, a, b), device)
        result[str(dtype).removeprefix("torch.")] = {
            "convolution GFLOP/s": round(2 * x.numel() * 64 * 27 / conv_seconds / 1e9),
            "matrix product GFLOP/s": round(2 * a.numel() * 256 / product_seconds / 1e9),
            "copy GB/s": round(2 * x.nbytes / copy_seconds / 1e9),
        }
    return result


def device_name(device: torch.device) -> str:
    """Name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else None
    return found[1] if found else platform.processor()
