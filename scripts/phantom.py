"""Synthetic abdomen volumes and fundus photographs in nnU-Net's raw format.

Two small, anatomically shaped datasets that need no download: `Dataset901_PhantomAbdomen3D` (anisotropic MR-like
volumes) and `Dataset902_PhantomFundus2D` (RGB images). Organs are implicit functions in patient space, so the anatomy
does not depend on the grid it is rendered on. Each case depends on the seed and on its own number alone, so asking for
more cases leaves the first ones as they were.

    python scripts/phantom.py OUT_FOLDER [--cases-3d N] [--cases-2d N] [--size-scale F] [--seed S]
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

import phantom_abdomen
import phantom_fundus

ABDOMEN_NAME = "Dataset901_PhantomAbdomen3D"
FUNDUS_NAME = "Dataset902_PhantomFundus2D"
TRAINING_CASES_PER_TEST_CASE = 5
FIRST_TEST_CASE = 1000  # test cases are numbered from here, so that they never share a random stream with training

ABDOMEN_HEADER = {"channel_names": {"0": "MRI"}, "labels": phantom_abdomen.LABELS, "file_ending": ".nii.gz"}
# One RGB file holds all three channels; nnU-Net's reader for natural images takes it apart.
FUNDUS_HEADER = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": phantom_fundus.LABELS,
    "file_ending": ".png",
}

CaseWriter = Callable[[np.random.Generator, int, Path, Path], None]  # generator, case, image file, label file


def write_abdomen(size_scale: float, rng: np.random.Generator, case: int, image_file: Path, label_file: Path) -> None:
    """Render a volume and write it with its labels."""
    grid, image, labels = phantom_abdomen.render_abdomen(rng, case, size_scale)
    sitk.WriteImage(grid.to_image(image), image_file, useCompression=True)
    sitk.WriteImage(grid.to_image(labels), label_file, useCompression=True)


def write_fundus(size_scale: float, rng: np.random.Generator, case: int, image_file: Path, label_file: Path) -> None:
    """Render a photograph and write it with its labels."""
    image, labels = phantom_fundus.render_fundus(rng, case, size_scale)
    Image.fromarray(image).save(image_file)
    Image.fromarray(labels).save(label_file)


def write_dataset(folder: Path, *, stem: str, cases: int, seed: int, header: dict[str, Any], write: CaseWriter) -> Path:
    """Write one dataset in nnU-Net's raw format, with one test case for every five training cases.

    Args:
        folder: The dataset's own folder, `DatasetXXX_Name`; it must not hold anything yet.
        stem: Start of the case names.
        cases: Number of training cases.
        seed: Seed of the whole dataset.
        header: `channel_names`, `labels` and `file_ending` of dataset.json.
        write: Renders one case and writes its image and its labels.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds something already; stale cases would be mixed with the new ones.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it, or choose another folder")
    for subfolder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    dataset_id = int(folder.name.removeprefix("Dataset").split("_")[0])
    test_cases = max(1, cases // TRAINING_CASES_PER_TEST_CASE)
    numbered = [("Tr", f"{stem}_{i:03d}", i) for i in range(cases)]
    numbered += [("Ts", f"{stem}_test_{i:03d}", FIRST_TEST_CASE + i) for i in range(test_cases)]
    for part, name, case in numbered:
        rng = np.random.default_rng([seed, dataset_id, case])
        image_file = folder / f"images{part}" / f"{name}_0000{header['file_ending']}"
        write(rng, case, image_file, folder / f"labels{part}" / f"{name}{header['file_ending']}")
    (folder / "dataset.json").write_text(json.dumps(header | {"numTraining": cases}, indent=2) + "\n")
    return folder


def write_phantoms(
    folder: Path | str, *, cases_3d: int = 20, cases_2d: int = 40, size_scale: float = 1.0, seed: int = 0
) -> list[Path]:
    """Write the 3D and the 2D phantom dataset.

    Args:
        folder: An `nnUNet_raw` folder; it is made if it is missing.
        cases_3d: Training cases of the abdomen; 0 leaves the dataset out. nnU-Net's own split needs five.
        cases_2d: Training cases of the fundus; 0 leaves the dataset out.
        size_scale: Factor on the number of voxels per axis. The anatomy keeps its size and the voxels grow instead.
        seed: Seed of both datasets.

    Returns:
        The folders of the datasets written.

    Raises:
        ValueError: A number of cases is negative, or `size_scale` is not positive or above 100.
        FileExistsError: A dataset's folder holds something already.
    """
    if min(cases_3d, cases_2d) < 0:
        raise ValueError(f"The numbers of cases must not be negative, got {cases_3d} and {cases_2d}")
    if not 0 < size_scale <= 100:
        raise ValueError(f"size_scale must be positive, 100 at most, got {size_scale}")

    abdomen, fundus = partial(write_abdomen, size_scale), partial(write_fundus, size_scale)
    datasets = (
        (ABDOMEN_NAME, "abdomen", cases_3d, ABDOMEN_HEADER, abdomen),
        (FUNDUS_NAME, "fundus", cases_2d, FUNDUS_HEADER, fundus),
    )
    return [
        write_dataset(Path(folder) / name, stem=stem, cases=cases, seed=seed, header=header, write=write)
        for name, stem, cases, header, write in datasets
        if cases
    ]


def main() -> None:
    """Parse the command line and write the datasets."""
    parser = argparse.ArgumentParser(description="Write two synthetic datasets in nnU-Net's raw format.")
    parser.add_argument("folder", type=Path, help="an nnUNet_raw folder")
    parser.add_argument("--cases-3d", type=int, default=20, help="training cases of the abdomen, 0: none (default 20)")
    parser.add_argument("--cases-2d", type=int, default=40, help="training cases of the fundus, 0: none (default 40)")
    parser.add_argument("--size-scale", type=float, default=1.0, help="factor on the voxels per axis (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        folders = write_phantoms(
            args.folder, cases_3d=args.cases_3d, cases_2d=args.cases_2d, size_scale=args.size_scale, seed=args.seed
        )
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    for folder in folders:
        print(folder)


if __name__ == "__main__":
    main()
