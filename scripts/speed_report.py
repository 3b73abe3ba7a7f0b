"""What `benchmark.py speed` measured, as Markdown tables."""

from collections.abc import Mapping
from typing import Any

from benchmark_speed import STOCK, SWIPE
from nnunetv2_swipe.planners.memory import GIB


def report(result: Mapping[str, Any]) -> str:
    """The measurements as Markdown tables."""
    stock, swipe = result[STOCK], result[SWIPE]
    rows = [
        ("parameters (M)", "training", "parameters", 1e6),
        ("GFLOP per training iteration", "training", "GFLOP per iteration", 1),
        ("seconds per training iteration", "training", "seconds per iteration", 1),
        ("seconds per training step (without data)", "training", "seconds per step", 1),
        ("peak training memory, added (GiB)", "training", "memory added", GIB),
        ("peak training memory, whole process (GiB)", "training", "memory total", GIB),
    ]
    for key in ("prediction, mirroring", "prediction, no mirroring"):
        rows += [
            (f"seconds per case, {key}", key, "seconds per case", 1),
            (f"GFLOP per case, {key}", key, "GFLOP per case", 1),
            (f"peak memory, {key}, added (GiB)", key, "memory added", GIB),
            (f"peak memory, {key}, whole process (GiB)", key, "memory total", GIB),
        ]
    lines = [f"| {result['task']['dataset']} | {STOCK} | {SWIPE} | ratio |", "|---|---|---|---|"]
    for title, group, key, unit in rows:
        a, b = stock[group][key] / unit, swipe[group][key] / unit
        ratio = f"{b / a:.3f}" if a else "-"  # no memory is added where what is there suffices
        lines.append(f"| {title} | {a:.3g} | {b:.3g} | {ratio} |")
    parts = list(dict.fromkeys([*stock["training"]["parts"], *swipe["training"]["parts"]]))
    lines += ["", f"| seconds per iteration | {STOCK} | {SWIPE} |", "|---|---|---|"]
    for part in parts:
        cells = [f"{side['training']['parts'].get(part, 0):.3f}" for side in (stock, swipe)]
        lines.append(f"| {part} | {cells[0]} | {cells[1]} |")
    parts_of_step = {part: t for part, t in swipe["training"]["parts"].items() if part != "data"}
    lines += [
        "",
        *_decoding(result),
        f"Points: {parts_of_step['points'] / sum(parts_of_step.values()):.1%} of a step.",
        *_floors(result),
        f"Hardware: {result['hardware']}",
    ]
    for what, table in result.get("growth", {}).items():
        lines += ["", f"| {what} | trainer | seconds | memory added (GiB) |", "|---|---|---|---|"]
        for row in table:
            mark = "~" if row["extrapolated"] else ""
            memory = f"{mark}{row['memory added'] / GIB:.3g}"
            lines.append(f"| {row['value']} | {row['trainer']} | {mark}{row['seconds']:.3g} | {memory} |")
    return "\n".join(lines)


def _decoding(result: Mapping[str, Any]) -> list[str]:
    """MISE against decoding every voxel, and what either would take at the rate of a plain matrix product."""
    decoding = result["decoding"]
    dtype, rate = _rates(result, "matrix product GFLOP/s")[-1]
    lines = [
        f"| decoding of a crop ({decoding['levels']} MISE levels) | MISE (s) | every voxel (s) | times as fast "
        f"| identical labels | least of {decoding['crops']} crops | floors at {rate} GFLOP/s ({dtype}) (s) |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in ("own", "blended"):
        d = decoding[key]
        mise, dense = d["MISE"], d["dense"]
        lines.append(
            f"| {key} | {mise['seconds']:.4f} | {dense['seconds']:.4f} | {dense['seconds'] / mise['seconds']:.2f} "
            f"| {d['identical labels']:.3%} | {d['least identical labels']:.3%} "
            f"| {mise['GFLOP'] / rate:.4f} and {dense['GFLOP'] / rate:.4f} |"
        )
    return [*lines, "", f"Encoder: {decoding['seconds of encode']:.3f} s per crop."]


def _floors(result: Mapping[str, Any]) -> list[str]:
    """Seconds that the FLOPs would take at the rate of a plain convolution: nnU-Net in float32 on the CPU."""
    rates = _rates(result, "convolution GFLOP/s")
    on_cpu = result["task"]["device"] == "cpu"
    lines = []
    for trainer, (dtype, rate) in ((STOCK, rates[0 if on_cpu else -1]), (SWIPE, rates[-1])):
        step = result[trainer]["training"]["GFLOP per iteration"] / rate
        case = result[trainer]["prediction, mirroring"]["GFLOP per case"] / rate
        lines.append(
            f"Floor of {trainer} at {rate} GFLOP/s ({dtype}): {step:.2f} s per training step, {case:.2f} s per case "
            "with mirroring."
        )
    return lines


def _rates(result: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    """What the hardware delivers, by precision; float32 first, then the reduced one if there is one."""
    return [(dtype, rates[key]) for dtype, rates in result["hardware"].items() if isinstance(rates, dict)]
