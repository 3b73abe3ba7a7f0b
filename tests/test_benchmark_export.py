"""The benchmark of exports on a small case: that all sides write the same labels, not how fast."""

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from nnunet_helpers import read_labels

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from benchmark_export import RESAMPLING, Case, export_stock, export_swipe, report, write_logits


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_export_of_a_small_case(tmp_path, monkeypatch):
    """The label files of both paths; where nnU-Net interpolates, borders may differ."""
    monkeypatch.setattr("benchmark_export.BODY_MM", 15.0)
    case = Case((12, 40, 36), 5)
    write_logits(case, tmp_path / "logits.npy")
    ours = export_swipe(case, tmp_path / "swipe")
    stock = {e: export_stock(case, e, tmp_path / "logits.npy", tmp_path / e[-3:]) for e in RESAMPLING}
    maps = [read_labels(tmp_path / f"{name}.nii.gz") for name in ("swipe", *[e[-3:] for e in RESAMPLING])]
    assert maps[0].shape == case.shape
    assert len(np.unique(maps[0])) > 2
    for resampled in maps[1:]:
        assert np.mean(maps[0] == resampled) > 0.9
    for measured in (ours, *stock.values()):
        assert measured["seconds"] > 0
        assert measured["memory added"] >= 0
    result = {"case": asdict(case), "machine": "any", "SwIPE": ours, **stock, "nnU-Net": None}
    for row in stock.values():
        row["identical labels"] = 1.0
    text = report(result)
    assert "| nnU-Net | | more than there is |" in text
    assert "36x40x12, 5 classes" in text
