"""The demo's picture: slices of the predictions beside the truth, and where they differ."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import SimpleITK as sitk
from matplotlib import pyplot as plt
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch
from numpy.typing import NDArray

Array = NDArray[Any]

# Colours of the classes by number, background first; they stand out from the images and from DIFFERENCES.
ABDOMEN_COLOURS = (
    np.array([(0, 0, 0), (217, 95, 70), (85, 180, 95), (245, 215, 110), (225, 80, 170), (70, 170, 225)]) / 255
)
FUNDUS_COLOURS = np.array([(0, 0, 0), (60, 200, 120), (40, 110, 235), (235, 60, 200)]) / 255
DIFFERENCES = {
    "false positive": (0.90, 0.10, 0.12),
    "false negative": (0.12, 0.35, 0.95),
    "wrong class": (0.95, 0.7, 0),
}
COLUMNS = ("image", "truth", "prediction", "difference")
COLUMN_INCHES, MARGIN_INCHES = 3.0, 1.0


@dataclass(frozen=True)
class Row:
    """One slice or image of the picture."""

    caption: str
    image: Array  # (H, W, 3) in [0, 1]
    truth: Array  # (H, W)
    prediction: Array
    aspect: float = 1.0  # height of a pixel by its width

    @property
    def relative_height(self) -> float:
        """Height of the picture by its width."""
        return self.image.shape[0] / self.image.shape[1] * self.aspect


@dataclass(frozen=True)
class Panel:
    """The rows of one dataset."""

    title: str
    rows: list[Row]
    labels: dict[str, int]
    colours: Array

    @property
    def inches(self) -> float:
        """Height of the rows with title and legend."""
        return COLUMN_INCHES * sum(row.relative_height for row in self.rows) + MARGIN_INCHES


def overlay(image: Array, labels: Array, colours: Array) -> Array:
    """Tint the labelled pixels in their classes' colours."""
    return np.where(labels[..., None] > 0, 0.4 * image + 0.6 * colours[labels], image)


def difference(image: Array, truth: Array, prediction: Array) -> Array:
    """Mark wrong pixels by kind on a faint grey copy of the image."""
    picture = np.repeat(0.25 + 0.6 * image.mean(-1, keepdims=True), 3, -1)
    wrong = truth != prediction
    kinds = (wrong & (truth == 0), wrong & (prediction == 0), wrong & (truth > 0) & (prediction > 0))
    for mask, colour in zip(kinds, DIFFERENCES.values(), strict=True):
        picture[mask] = colour
    return picture


def case_scores(summary: dict[str, Any], stem: str) -> dict[str, float]:
    """Dice per class number of one case in nnU-Net's summary.json."""
    for case in summary["metric_per_case"]:
        if Path(case["prediction_file"]).name.startswith(stem + "."):
            return {number: metrics["Dice"] for number, metrics in case["metrics"].items()}
    raise ValueError(f"summary.json holds no case {stem}")


def describe(scores: dict[str, float], labels: dict[str, int]) -> str:
    """Scores of one case as text; classes that neither truth nor prediction holds have no score."""
    names = {str(number): name.replace("_", " ") for name, number in labels.items()}
    parts = [f"{names[number]} {dice:.2f}" for number, dice in scores.items() if np.isfinite(dice)]
    return f"Dice {np.nanmean(list(scores.values())):.2f} ({', '.join(parts)})"


def abdomen_rows(raw: Path, predictions: Path, stem: str, labels: dict[str, int]) -> list[Row]:
    """Two axial slices and a coronal one of a test case, seen from the feet and from the front."""
    files = (
        raw / "imagesTs" / f"{stem}_0000.nii.gz",
        raw / "labelsTs" / f"{stem}.nii.gz",
        predictions / f"{stem}.nii.gz",
    )
    images = [sitk.ReadImage(file) for file in files]
    volume, truth, prediction = (sitk.GetArrayFromImage(image) for image in images)
    grey = np.clip(volume / np.percentile(volume, 99.5), 0, 1)[..., None].repeat(3, -1)
    x_mm, _, z_mm = images[0].GetSpacing()
    axial = {name: int((truth == labels[name]).sum((1, 2)).argmax()) for name in ("tumour", "kidney")}
    coronal = int((truth == labels["kidney"]).sum((0, 2)).argmax())
    rows = [
        Row(f"axial slice {z + 1} of {len(volume)}", grey[z], truth[z], prediction[z]) for z in sorted(axial.values())
    ]
    # Rows of a coronal slice run to the head; a picture's run down.
    front = (slice(None, None, -1), coronal)
    return [*rows, Row(f"coronal slice {coronal + 1}", grey[front], truth[front], prediction[front], z_mm / x_mm)]


def fundus_row(raw: Path, predictions: Path, stem: str) -> Row:
    """One test image."""
    image = plt.imread(raw / "imagesTs" / f"{stem}_0000.png")[..., :3]
    truth, prediction = (
        np.rint(plt.imread(folder / f"{stem}.png") * 255).astype(int) for folder in (raw / "labelsTs", predictions)
    )
    return Row(stem, image, truth, prediction)


def abdomen_panel(folder: Path, name: str) -> Panel:
    """Slices of the first test case of the 3D dataset."""
    raw, predictions, labels, summary = load_results(folder, name)
    stem = sorted(file.name for file in (raw / "labelsTs").glob("*.nii.gz"))[0].removesuffix(".nii.gz")
    title = f"3D, {stem}: {describe(case_scores(summary, stem), labels)}"
    return Panel(title, abdomen_rows(raw, predictions, stem, labels), labels, ABDOMEN_COLOURS)


def fundus_panel(folder: Path, name: str) -> Panel:
    """The first test images of the 2D dataset."""
    raw, predictions, labels, summary = load_results(folder, name)
    stems = sorted(file.stem for file in (raw / "labelsTs").glob("*.png"))[:2]
    lines = [f"2D, {stem}: {describe(case_scores(summary, stem), labels)}" for stem in stems]
    rows = [fundus_row(raw, predictions, stem) for stem in stems]
    return Panel("\n".join(lines), rows, labels, FUNDUS_COLOURS)


def load_results(folder: Path, name: str) -> tuple[Path, Path, dict[str, int], dict[str, Any]]:
    """A dataset's folders of raw data and predictions, its labels, and nnU-Net's summary."""
    raw, predictions = folder / "nnUNet_raw" / name, folder / "predictions" / name
    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    return raw, predictions, labels, json.loads((predictions / "summary.json").read_text())


def draw_panel(part: SubFigure, panel: Panel) -> None:
    """Fill one part of the figure with the rows of a dataset and a legend."""
    heights = [row.relative_height for row in panel.rows]
    axes = part.subplots(len(panel.rows), len(COLUMNS), height_ratios=heights, squeeze=False)
    part.suptitle(panel.title, fontsize=12, fontweight="bold")
    for row, line in zip(panel.rows, axes, strict=True):
        pictures = (
            row.image,
            overlay(row.image, row.truth, panel.colours),
            overlay(row.image, row.prediction, panel.colours),
            difference(row.image, row.truth, row.prediction),
        )
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(np.clip(picture, 0, 1), aspect=row.aspect, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(row.caption, fontsize=9)
    for axis, column in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(column, fontsize=11)
    entries = {name.replace("_", " "): panel.colours[number] for name, number in panel.labels.items() if number}
    handles = [Patch(color=colour, label=name) for name, colour in (entries | DIFFERENCES).items()]
    part.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def write_figure(folder: Path, abdomen: str, fundus: str, figure_file: Path) -> None:
    """Write the demo's picture.

    Args:
        folder: The demo's work folder.
        abdomen: Name of the 3D dataset.
        fundus: Name of the 2D dataset.
        figure_file: The picture to write.
    """
    mpl.use("Agg")
    panels = [abdomen_panel(folder, abdomen), fundus_panel(folder, fundus)]
    heights = [panel.inches for panel in panels]
    figure = plt.figure(figsize=(COLUMN_INCHES * len(COLUMNS) + 0.3, sum(heights)), layout="constrained", dpi=110)
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)
    for part, panel in zip(parts[:, 0], panels, strict=True):
        draw_panel(part, panel)
    figure.savefig(figure_file)
    plt.close(figure)
