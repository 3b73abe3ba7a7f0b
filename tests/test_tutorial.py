"""The program in docs/tutorial.md runs, on narrow models in the place of the demo's."""

import re
from pathlib import Path

import numpy as np
from nnunet_helpers import nnunet_folders

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"


def test_the_tutorial_runs(trained_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    (tmp_path / "demo").symlink_to(trained_models)
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert len(blocks) == 6
    names = {}
    with nnunet_folders(trained_models):
        exec("\n".join(blocks), names)
    image, mesh = names["image"], names["mesh"]
    assert names["labels"].shape == image.grid.shape
    assert names["fine_labels"].shape == names["fine"].shape
    np.testing.assert_allclose(names["fine"].spacing, 1)
    np.testing.assert_allclose(names["probabilities"].sum(1), 1, atol=1e-5)
    assert mesh.vertices.shape[1] == mesh.faces.shape[1] == 3
    assert names["variances"].shape == (4, *image.grid.shape)
    np.testing.assert_allclose(names["attention"].sum(0), 1, atol=1e-3)
    assert (tmp_path / "tutorial.png").is_file()
