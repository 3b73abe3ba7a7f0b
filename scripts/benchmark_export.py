"""`benchmark.py export`: from embeddings, or logits, to the label file of a large image of many classes.

The image is synthetic, at 0.8 x 0.8 x 3 mm, and the model works at 1.5 mm. Its weights are fixed, not trained, and in
the place of its encoder a smooth random field in the patient gives the embeddings of patches, so that overlapping tiles
agree and classes form bodies several centimetres wide. SwIPE decodes the label map from these embeddings. nnU-Net
exports the same model's logits, as it keeps them: in half precision, on the grid of the model.
"""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from benchmark_speed import quiet
from measure import PeakMemory, device_name, isolated
from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.inference.tiles import TiledImage
from nnunetv2_swipe.network.coordinates import (
    N_SOURCE_CHANNELS,
    fit_source_frame,
    image_coordinates,
    source_coordinates,
    voxel_centres,
    with_source_channels,
)
from nnunetv2_swipe.network.swipe_net import Embeddings, SwIPENet
from nnunetv2_swipe.planners.memory import GIB
from nnunetv2_swipe.planners.self_configuration import derive_config
from nnunetv2_swipe.precision import amp_dtype

SPACING, MODEL_SPACING = (3.0, 0.8, 0.8), (1.5, 1.5, 1.5)
CROP = (128, 128, 128)
BODY_MM = 150.0
"""Distance of the random field's values."""
EMBEDDING_SCALE, POINT_SCALE, LOGIT_SCALE = 6.0, 0.02, 40.0
"""They make logits smooth, and their two highest differ by five units in the median, as those of trained models do."""
RESAMPLING = {
    "nnU-Net": ("resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}),
    "nnU-Net, torchres": ("resample_torch_fornnunet", {"is_seg": False, "force_separate_z": False}),
}
"""Of nnU-Net's planners: the default one and nnUNetPlannerResEncL_torchres."""
SWIPE = "SwIPE"


@dataclass(frozen=True)
class Case:
    """A synthetic case.

    Attributes:
        shape: Of the image, (z, y, x).
        classes: Classes with the background.
    """

    shape: tuple[int, int, int]
    classes: int

    @property
    def model_shape(self) -> tuple[int, ...]:
        """Shape of the preprocessed image."""
        return tuple(round(n * s / m) for n, s, m in zip(self.shape, SPACING, MODEL_SPACING, strict=True))

    @property
    def properties(self) -> dict[str, Any]:
        """What nnU-Net's reader and preprocessor would say of it."""
        return {
            "spacing": list(SPACING),
            "sitk_stuff": {"spacing": SPACING[::-1], "origin": (0.0,) * 3, "direction": tuple(np.eye(3).flatten())},
            "shape_before_cropping": self.shape,
            "shape_after_cropping_and_before_resampling": self.shape,
            "bbox_used_for_cropping": [[0, n] for n in self.shape],
        }

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Its dataset."""
        labels = {"background": 0, **{f"class {n}": n for n in range(1, self.classes)}}
        return {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}

    def plans(self, exporter: str) -> PlansManager:
        """A plan with the resampling of one of nnU-Net's planners."""
        function, options = RESAMPLING[exporter]
        architecture = {"strides": [[1] * 3] + [[2] * 3] * 5, "kernel_sizes": [[3] * 3] * 6}
        configuration = {
            "spacing": list(MODEL_SPACING),
            "patch_size": list(CROP),
            "batch_size": 2,
            "architecture": {"network_class_name": "-", "arch_kwargs": architecture, "_kw_requires_import": []},
            "resampling_fn_probabilities": function,
            "resampling_fn_probabilities_kwargs": options,
        }
        return PlansManager(
            {
                "dataset_name": "Dataset999_Synthetic",
                "plans_name": exporter,
                "transpose_forward": [0, 1, 2],
                "transpose_backward": [0, 1, 2],
                "image_reader_writer": "SimpleITKIO",
                "label_manager": "LabelManager",
                "configurations": {"3d_fullres": configuration},
            }
        )


class _FieldNet(SwIPENet):
    """SwIPE with fixed weights; patches get the values of a random field where they lie in the image."""

    seconds_of_embeddings = 0.0
    """Spent by all networks in `encode`."""

    def __init__(self, case: Case) -> None:
        configuration = case.plans("nnU-Net").get_configuration("3d_fullres").configuration
        config = derive_config(configuration, {}, num_classes=case.classes, regions=False)
        torch.manual_seed(0)
        super().__init__(config, 1, case.classes)
        self.patch_decoder.seg_layers.weight.data *= LOGIT_SCALE
        self.patch_decoder.point_layer.weight.data *= POINT_SCALE
        extent = [n * s for n, s in zip(case.shape, SPACING, strict=True)]
        nodes = [round(length / BODY_MM) + 1 for length in extent]
        self._field = EMBEDDING_SCALE * torch.randn(1, config.embedding_dim, *nodes)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Embeddings:
        """The field at the centres of patches, in the place of an encoder."""
        start = time.perf_counter()
        frame = fit_source_frame(x[:, :N_SOURCE_CHANNELS])
        size = tuple(x.shape[2:])
        grid = [n // s for n, s in zip(size, self.config.patch_size, strict=True)]
        centres = (voxel_centres(grid) + 0.5) * torch.tensor(self.config.patch_size) - 0.5
        place = source_coordinates(image_coordinates(centres, size), frame).view(1, *grid, 3)
        patch = F.grid_sample(self._field, place.flip(-1), align_corners=True, padding_mode="border")
        patch = patch.movedim(1, -1).to(amp_dtype("cpu") or torch.float32).contiguous()
        _FieldNet.seconds_of_embeddings += time.perf_counter() - start
        return Embeddings(patch, torch.zeros(1, self.config.embedding_dim), None, frame, size)


def _predictor(case: Case) -> SwIPEPredictor:
    predictor = SwIPEPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    network, plans = _FieldNet(case), case.plans("nnU-Net")
    configuration = plans.get_configuration("3d_fullres")
    parameters = [network.state_dict()]
    predictor.manual_initialization(network, plans, configuration, parameters, case.dataset_json, "SwIPETrainer", None)
    return predictor


def _image(case: Case) -> Tensor:
    return torch.from_numpy(with_source_channels(np.zeros((1, *case.model_shape), dtype=np.float32)))


def write_logits(case: Case, file: Path) -> None:
    """The model's logits as nnU-Net keeps them, (K, z, y, x) in half precision."""
    with quiet():
        image = TiledImage(_predictor(case), _image(case))
    positions = [torch.arange(n, dtype=torch.float32) for n in case.model_shape]
    logits = np.lib.format.open_memmap(file, "w+", np.float16, (case.classes, *case.model_shape))
    for box in image.blocks(positions):
        found = image.decode_lattice([p[part] for p, part in zip(positions, box, strict=True)])
        where = (slice(None), *box)
        logits[where] = found.half().numpy()


def export_swipe(case: Case, output: Path) -> dict[str, Any]:
    """From embeddings to the label file; the seconds that making up embeddings takes are left out."""
    with quiet():
        predictor = _predictor(case)
    with PeakMemory(torch.device("cpu")) as memory, quiet():
        data = {"data": _image(case), "data_properties": case.properties, "ofile": str(output)}
        start, before = time.perf_counter(), _FieldNet.seconds_of_embeddings
        predictor.predict_from_data_iterator([data], False, 1)
        seconds = time.perf_counter() - start - (_FieldNet.seconds_of_embeddings - before)
    return {"seconds": seconds, "memory added": memory.added}


def export_stock(case: Case, exporter: str, logits_file: Path, output: Path) -> dict[str, Any]:
    """nnU-Net's export, from logits in memory to the label file."""
    plans = case.plans(exporter)
    configuration = plans.get_configuration("3d_fullres")
    with PeakMemory(torch.device("cpu")) as memory, quiet():
        logits = np.load(logits_file)
        start = time.perf_counter()
        export_prediction_from_logits(logits, case.properties, configuration, plans, case.dataset_json, str(output))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory added": memory.added}


def measure_export(case: Case, exporters: Sequence[str]) -> dict[str, Any]:
    """Each side in a process of its own; None where it was killed for want of memory."""
    result: dict[str, Any] = {"case": asdict(case), "machine": device_name(torch.device("cpu"))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result[SWIPE] = isolated(export_swipe, case, folder / "swipe")
        if exporters:
            isolated(write_logits, case, folder / "logits.npy")
        for exporter in exporters:
            try:
                result[exporter] = isolated(export_stock, case, exporter, folder / "logits.npy", folder / "stock")
            except BrokenProcessPool:
                result[exporter] = None
                continue
            maps = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{f}.nii.gz"))) for f in ("swipe", "stock")]
            result[exporter]["identical labels"] = float(np.mean(maps[0] == maps[1]))
    return result


def report(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    case = result["case"]
    size = "x".join(map(str, case["shape"][::-1]))
    ours = result[SWIPE]
    lines = [
        f"| {size}, {case['classes']} classes; {result['machine']} | seconds | memory added (GiB) | SwIPE's share of "
        "seconds and memory | identical labels |",
        "|---|---|---|---|---|",
        f"| {SWIPE} | {ours['seconds']:.1f} | {ours['memory added'] / GIB:.2f} | | |",
    ]
    for exporter in RESAMPLING:
        if exporter not in result:
            continue
        stock = result[exporter]
        if stock is None:
            lines.append(f"| {exporter} | | more than there is | | |")
            continue
        shares = [ours[key] / max(stock[key], 1e-9) for key in ("seconds", "memory added")]
        lines.append(
            f"| {exporter} | {stock['seconds']:.1f} | {stock['memory added'] / GIB:.2f} | "
            f"{shares[0]:.3f} and {shares[1]:.3f} | {stock['identical labels']:.3%} |"
        )
    return "\n".join(lines)
