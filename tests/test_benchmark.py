"""The speed benchmark on tiny data: that it measures what it says, not how fast anything is."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunet_helpers import ABDOMEN, PLANS, edit_json, narrow, nnunet_folders, plan, plans_file, write_phantom

from nnunetv2_swipe.training import batch_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import benchmark_speed
import measure
import speed_report
from demo import DemoError

STOCK, SWIPE = benchmark_speed.STOCK, benchmark_speed.SWIPE
CPU = torch.device("cpu")
on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A whole run, in this process."""
    root = tmp_path_factory.mktemp("benchmark")
    with nnunet_folders(root), pytest.MonkeyPatch.context() as patch:
        write_phantom(root / "nnUNet_raw")
        plan(901, "SwIPEPlanner", "-c", "3d_fullres", "-np", 1, "-npfp", 1)
        edit_json(plans_file(ABDOMEN), narrow)
        patch.setattr(benchmark_speed, "isolated", lambda function, *a, **k: function(*a, **k))
        patch.setattr(torch.Tensor, "backward", torch.Tensor.backward)  # what is watched here is restored
        patch.setattr(batch_loss, "sample_points", batch_loss.sample_points)
        patch.setattr(benchmark_speed, "SECONDS_PER_GROWTH_STEP", 0.0)
        sizes = {"crop (voxels per side)": (16, 32), "classes": (1, 3), "points (N)": (64, 128)}
        patch.setattr(benchmark_speed, "GROWTH", {k: {3: v} for k, v in sizes.items()})
        task = benchmark_speed.Task(ABDOMEN, "3d_fullres", PLANS, "cpu")
        model = Path(benchmark_speed.measure_training(task, SWIPE, 1)["model"])
        images = sorted((root / "nnUNet_raw" / ABDOMEN / "imagesTr").iterdir())[:1]
        found = {}
        benchmark_speed.measure_all(found, task, model, [[str(f)] for f in images], root / "out", steps=2, growth=True)
        yield found


@on_linux
def test_parts_make_up_the_step(result):
    for trainer, parts in ((STOCK, {"encoder", "decoders"}), (SWIPE, {"points", "encoder", "neck", "decoders"})):
        training = result[trainer]["training"]
        assert {"data", "loss", "backward", "optimizer", "other", *parts} == set(training["parts"])
        assert all(seconds > 0 for seconds in training["parts"].values())
        assert training["seconds per iteration"] > training["seconds per step"] > 0
        assert training["GFLOP per iteration"] > 0


@on_linux
def test_prediction_with_mirroring_is_more_work(result):
    for trainer in (STOCK, SWIPE):
        once, mirrored = (result[trainer][f"prediction, {key}"] for key in ("no mirroring", "mirroring"))
        assert mirrored["GFLOP per case"] > 6 * once["GFLOP per case"]
        assert min(once["seconds per case"], mirrored["seconds per case"]) > 0


@on_linux
def test_what_does_not_fit_is_extrapolated_and_marked(result):
    for what, trainers in (("crop (voxels per side)", 2), ("classes", 2), ("points (N)", 1)):
        table = result["growth"][what]
        assert [row["extrapolated"] for row in table] == [False, True] * trainers
        factor = 2**3 if what.startswith("crop") else table[1]["value"] / table[0]["value"]
        assert table[1]["seconds"] == pytest.approx(factor * table[0]["seconds"])


@on_linux
def test_report_shows_every_measurement(result):
    text = speed_report.report(json.loads(json.dumps(result)))
    for line in ("parameters (M)", "seconds per training iteration", "seconds per case, prediction, mirroring"):
        assert f"| {line} | " in text
    for decoding in ("own", "blended"):
        assert f"\n| {decoding} | " in text
    assert "| 32 | SwIPETrainer | ~" in text


@on_linux
def test_nothing_added_has_no_ratio(result):
    """A step may fit into memory that is there already."""
    training = {**result[STOCK]["training"], "memory added": 0}
    text = speed_report.report({**result, STOCK: {**result[STOCK], "training": training}})
    (row,) = [line for line in text.splitlines() if line.startswith("| peak training memory, added")]
    assert row.startswith("| peak training memory, added (GiB) | 0 | ")
    assert row.endswith("| - |")


@on_linux
def test_peak_memory_is_what_was_held_at_once():
    with measure.PeakMemory(CPU) as memory:
        for _ in range(3):
            torch.zeros(1 << 24)  # 64 MiB, three times one after the other
    assert 60 << 20 < memory.added < 100 << 20


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which stands still unless a test moves it."""
    now = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_median_leaves_the_first_call_out(clock):
    waits = iter([20, 1, 3, 2])

    def wait():
        clock[0] += next(waits)

    assert measure.seconds_of(wait, CPU) == 2


def test_slow_calls_are_made_once(clock):
    calls = []

    def wait():
        calls.append(1)
        clock[0] += 20

    assert measure.seconds_of(wait, CPU, limit=10) == 20
    assert len(calls) == 1


@on_linux
def test_models_of_other_settings_are_refused_before_anything_is_measured(result, tmp_path):
    plans = shutil.copy(Path(result[SWIPE]["training"]["model"]) / "plans.json", tmp_path)

    def change(plans):
        plans["configurations"]["3d_fullres"]["swipe"]["n_points"] += 1

    edit_json(Path(plans), change)
    task, measured = benchmark_speed.Task(**result["task"]), {}
    with pytest.raises(DemoError, match=r"other settings than the plan's \(n_points\)"):
        benchmark_speed.measure_all(measured, task, tmp_path, [], tmp_path, steps=1, growth=False)
    assert not measured
