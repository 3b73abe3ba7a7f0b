"""`benchmark.py speed`: time, memory and work of SwIPETrainer beside nnUNetTrainer on the same dataset, crop and batch.

Every measurement runs in a process of its own. Training steps use real batches of nnU-Net's loader; predictions are
nnU-Net's predictor on validation cases, from image file to segmentation file. The weights of nnU-Net are not trained
(its time does not depend on them); SwIPE's are, because its decoder spends its time where classes meet.
"""

import contextlib
import copy
import io
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.utils.flop_counter import FlopCounterMode

from demo import DemoError
from measure import PeakMemory, Stopwatch, hardware, isolated, seconds_of, synchronize
from nnunetv2_swipe.config import PLAN_KEY
from nnunetv2_swipe.network.coordinates import N_SOURCE_CHANNELS, source_channels
from nnunetv2_swipe.network.swipe_net import Embeddings, SwIPENet
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE
from nnunetv2_swipe.planners.plan_block import FRAME_PREPROCESSOR
from nnunetv2_swipe.planners.self_configuration import derive_config
from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer
from nnunetv2_swipe.training import batch_loss
from real_data import FOLD

STOCK, SWIPE = "nnUNetTrainer", "SwIPETrainer"
WARM_UP_STEPS = 2
SECONDS_PER_GROWTH_STEP = 60.0
GROWTH: dict[str, dict[int, tuple[int, ...]]] = {
    "crop (voxels per side)": {2: (128, 256, 512, 1024), 3: (32, 48, 64, 96, 128, 160)},
    "classes": dict.fromkeys((2, 3), (1, 3, 10, 30, 100)),
    "points (N)": dict.fromkeys((2, 3), (512, 2048, 8192, 65536)),
    "image (voxels per side)": {2: (256, 512, 1024, 2048), 3: (64, 128, 256, 512)},
}


@dataclass(frozen=True)
class Task:
    """What is measured, and where.

    Attributes:
        dataset: nnU-Net's name of the dataset.
        configuration: Configuration of the plan.
        plans: Name of the plan; its crop and batch serve both trainers.
        device: "cpu" or "cuda".
    """

    dataset: str
    configuration: str
    plans: str
    device: str

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch's object."""
        return torch.device(self.device)

    def trainer(self, name: str) -> nnUNetTrainer:
        """A trainer of the dataset, not initialised."""
        return get_trainer_from_args(self.dataset, self.configuration, FOLD, name, self.plans, device=self.torch_device)


def measure_training(task: Task, trainer_name: str, steps: int) -> dict[str, Any]:
    """Seconds of a training iteration and its parts, peak memory, FLOPs and parameters."""
    torch.backends.cudnn.benchmark = task.device == "cuda"  # as nnUNetv2_train sets it
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (what nnU-Net's loader draws from)
    device = task.torch_device
    watch = Stopwatch(device)
    with quiet(), PeakMemory(device) as memory:
        trainer = task.trainer(trainer_name)
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        trainer.on_train_epoch_start()
        for _ in range(WARM_UP_STEPS):
            trainer.train_step(next(loader))
        seconds, data = [], []
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(loader)
            loaded = time.perf_counter()
            trainer.train_step(batch)
            synchronize(device)
            data.append(loaded - start)
            seconds.append(time.perf_counter() - loaded)
    with quiet():
        # parts are of the plain network
        trainer.network = getattr(trainer.network, "_orig_mod", trainer.network)
        if isinstance(trainer, SwIPETrainer):
            trainer.batch_loss = batch_loss.BatchLoss(trainer.network, trainer.loss)
        _watch_parts(watch, trainer)
        start = time.perf_counter()
        for _ in range(steps):
            trainer.train_step(batch)
        synchronize(device)
        watched = time.perf_counter() - start
    parts = {part: total / steps for part, total in watch.seconds.items()}
    parts["other"] = watched / steps - sum(parts.values())
    with quiet(), FlopCounterMode(display=False) as counter:
        trainer.train_step(batch)
    with quiet():
        save_model(trainer)
    return {
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "GFLOP per iteration": counter.get_total_flops() / 1e9,
        "seconds per step": statistics.median(seconds),
        "seconds per iteration": statistics.median(seconds) + statistics.median(data),
        "parts": {"data": statistics.median(data), **parts},
        "memory added": memory.added,
        "memory total": memory.total,
        "model": trainer.output_folder_base,
    }


def _watch_parts(watch: Stopwatch, trainer: nnUNetTrainer) -> None:
    """Time the parts of a training step."""
    network = trainer.network
    watch.watch(torch.Tensor, "backward", "backward")
    watch.watch(trainer.optimizer, "step", "optimizer")
    if not isinstance(trainer, SwIPETrainer):
        watch.watch(network.encoder, "forward", "encoder")
        watch.watch(network.decoder, "forward", "decoders")
        watch.watch(trainer.loss, "forward", "loss")
        return
    watch.watch(batch_loss, "sample_points", "points")
    watch.watch(network.backbone, "forward", "encoder")
    watch.watch(network.neck, "forward", "neck")
    watch.watch(network.neck, "embed", "neck")
    watch.watch(network.patch_decoder, "forward", "decoders")
    if network.image_decoder is not None:
        watch.watch(network.image_decoder, "forward", "decoders")
    watch.watch(trainer.loss, "points", "loss")


def planned_settings(task: Task) -> dict[str, Any]:
    """The `swipe` block that is trained with, derived where the plan has none."""
    with quiet():
        return task.trainer(SWIPE).config.to_dict()


def save_model(trainer: nnUNetTrainer) -> None:
    """Leave a model folder that nnU-Net's predictor takes."""
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    save_json(trainer.plans_manager.plans, str(Path(trainer.output_folder_base) / "plans.json"), sort_keys=False)
    save_json(trainer.dataset_json, str(Path(trainer.output_folder_base) / "dataset.json"), sort_keys=False)


def predictor_of(model: Path, device: torch.device, *, mirroring: bool, fold: int = FOLD) -> nnUNetPredictor:
    """nnU-Net's predictor with the weights that `save_model` left."""
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), (fold,), "checkpoint_final.pth")
    return predictor


def measure_prediction(
    task: Task, model: Path, images: Sequence[Sequence[str]], output: Path, *, mirroring: bool
) -> dict[str, Any]:
    """Seconds per case of nnU-Net's predictor, image file to segmentation file, after one case for warming up."""
    output.mkdir(parents=True, exist_ok=True)
    seconds = []
    with quiet(), PeakMemory(task.torch_device) as memory:
        predictor = predictor_of(model, task.torch_device, mirroring=mirroring)
        for i, files in enumerate([images[0], *images]):
            start = time.perf_counter()
            predictor.predict_from_files_sequential([list(files)], [str(output / str(i))])
            synchronize(task.torch_device)
            seconds.append(time.perf_counter() - start)
    with quiet(), FlopCounterMode(display=False) as counter:
        for i, files in enumerate(images):
            predictor.predict_from_files_sequential([list(files)], [str(output / str(i))])
    return {
        "seconds per case": statistics.mean(seconds[1:]),
        "GFLOP per case": counter.get_total_flops() / 1e9 / len(images),
        "memory added": memory.added,
        "memory total": memory.total,
    }


def measure_decoding(task: Task, model: Path, images: Sequence[Sequence[str]]) -> dict[str, Any]:
    """MISE as planned, against decoding every voxel of the same crops; by own patches and blended."""
    with quiet():
        predictor = predictor_of(model, task.torch_device, mirroring=False)
        network = predictor.network
        assert isinstance(network, SwIPENet)
        network.load_state_dict(predictor.list_of_parameters[0])
        network.to(task.torch_device).eval()
        crops = [crop for files in images for crop in _crops(predictor, files)]
    planned, device = network.config, task.torch_device
    result: dict[str, Any] = {"crops": len(crops), "levels": planned.mise_levels}
    with torch.inference_mode():
        inputs = [crop.to(device) for crop in crops]
        embedded = [network.encode(x) for x in inputs]
        result["seconds of encode"] = statistics.mean(seconds_of(partial(network.encode, x), device) for x in inputs)
        for decoding in ("own", "blended"):
            rows = {}
            for key, levels in (("MISE", planned.mise_levels), ("dense", 0)):
                network.config = planned.replace(mise_levels=levels, decoding=decoding)
                rows[key] = [_decode(network, embeddings, device) for embeddings in embedded]
            pairs = zip(*[[labels for labels, _ in row] for row in rows.values()], strict=True)
            same = [(a == b).float().mean().item() for a, b in pairs]
            costs = {
                key: {name: statistics.mean(cost[name] for _, cost in row) for name in row[0][1]}
                for key, row in rows.items()
            }
            result[decoding] = {**costs, "identical labels": statistics.mean(same), "least identical labels": min(same)}
    return result


def _decode(network: SwIPENet, embeddings: Embeddings, device: torch.device) -> tuple[torch.Tensor, dict[str, float]]:
    """Labels of a crop, and what they cost."""
    run = partial(network.decode_dense, embeddings)
    seconds = seconds_of(run, device)
    with FlopCounterMode(display=False) as counter:
        logits = run()
    labels = logits > 0 if network.config.regions else logits.argmax(1)
    return labels, {"seconds": seconds, "GFLOP": counter.get_total_flops() / 1e9}


def _preprocessed(predictor: nnUNetPredictor, files: Sequence[str]) -> np.ndarray:
    """A case as the model's preprocessor brings it to the network, (C, z, y, x)."""
    configuration = predictor.configuration_manager
    data, _, _ = configuration.preprocessor_class(verbose=False).run_case(
        list(files), None, predictor.plans_manager, configuration, predictor.dataset_json
    )
    return data


def _crops(predictor: nnUNetPredictor, files: Sequence[str]) -> list[torch.Tensor]:
    """All windows of a case, as nnU-Net's predictor cuts them: each (1, C, *crop)."""
    data = torch.from_numpy(_preprocessed(predictor, files))
    padded = pad_nd_image(data, predictor.configuration_manager.patch_size, "constant", {"value": 0})
    return [padded[window][None] for window in predictor._internal_get_sliding_window_slicers(padded.shape[1:])]


def measure_image(task: Task, model: Path, files: Sequence[str], side: int) -> dict[str, Any]:
    """Seconds and peak memory of predicting, without mirroring, a validation case repeated to a larger size."""
    with quiet():
        predictor = predictor_of(model, task.torch_device, mirroring=False)
        configuration = predictor.configuration_manager
        data = _preprocessed(predictor, files)
        size = [1 if n == 1 and len(configuration.patch_size) == 2 else side for n in data.shape[1:]]
        axes = [np.arange(n) % m for n, m in zip(size, data.shape[1:], strict=True)]
        image = data[np.ix_(range(len(data)), *axes)]
        if configuration.preprocessor_name == FRAME_PREPROCESSOR:
            image[:N_SOURCE_CHANNELS] = source_channels(size)
        run = partial(predictor.predict_logits_from_preprocessed_data, torch.from_numpy(image))
        with PeakMemory(task.torch_device) as memory:
            seconds = seconds_of(run, task.torch_device, limit=SECONDS_PER_GROWTH_STEP)
    return {"seconds": seconds, "memory added": memory.added}


def measure_step(task: Task, trainer_name: str, what: str, value: int) -> dict[str, Any]:
    """Seconds and peak memory of a training step (batch 1, synthetic) at one size."""
    torch.backends.cudnn.benchmark = task.device == "cuda"
    with quiet():
        trainer = task.trainer(STOCK)
    plans = copy.deepcopy(trainer.plans_manager.plans) | {"continue_training": False}
    dataset = copy.deepcopy(trainer.dataset_json)
    configuration = dict(trainer.configuration_manager.configuration)
    configuration["batch_size"] = 1
    dims = len(configuration["patch_size"])
    if what.startswith("crop"):
        configuration["patch_size"] = [value] * dims
    if what == "classes":
        dataset["labels"] = {"background": 0} | {f"class {i}": i for i in range(1, value + 1)}
    heads = len(dataset["labels"])
    if trainer_name == SWIPE:
        statistics_file = Path(trainer.preprocessed_dataset_folder_base) / STATISTICS_FILE
        labels = load_json(str(statistics_file))["classes"]
        config = derive_config(configuration, labels, num_classes=heads, regions=False)
        if what.startswith("points"):
            config = config.replace(n_points=value)
        configuration[PLAN_KEY] = config.to_dict()
    plans["configurations"] = {task.configuration: configuration}
    trainer_class = SwIPETrainer if trainer_name == SWIPE else nnUNetTrainer
    torch.manual_seed(0)
    with quiet(), PeakMemory(task.torch_device) as memory:
        trainer = trainer_class(plans, task.configuration, FOLD, dataset, task.torch_device)
        trainer.initialize()
        trainer.network.train()
        run = partial(trainer.train_step, _synthetic_batch(trainer, heads))
        seconds = seconds_of(run, task.torch_device, limit=SECONDS_PER_GROWTH_STEP)
    return {"seconds": seconds, "memory added": memory.added}


def _synthetic_batch(trainer: nnUNetTrainer, heads: int) -> dict[str, Any]:
    """Noise with blocks of all classes, (1, C, *crop), and targets as the trainer expects them."""
    crop = trainer.configuration_manager.patch_size
    channels = getattr(trainer.network, "expected_channels", trainer.num_input_channels)
    blocks = torch.randint(heads, (1, 1, *[-(-n // 8) for n in crop])).float()
    target = F.interpolate(blocks, size=tuple(crop))
    scales = trainer._get_deep_supervision_scales()
    targets = [F.interpolate(target, scale_factor=s) for s in scales] if scales else target
    return {"data": torch.randn(1, channels, *crop), "target": targets, "keys": ["synthetic"]}


def growth_table(task: Task, what: str, models: Mapping[str, Path], files: Sequence[str]) -> list[dict[str, Any]]:
    """One row per size, both trainers; what takes too long or too much is extrapolated from the size before."""
    rows = []
    dims = 2 if task.configuration == "2d" else 3
    power = dims if "per side" in what else 1
    for trainer_name in (SWIPE,) if what.startswith("points") else (STOCK, SWIPE):
        last: dict[str, Any] | None = None
        for value in GROWTH[what][dims]:
            factor = (value / last["value"]) ** power if last else 1.0
            result = None
            if last is None or (
                not last["extrapolated"]
                and factor * last["seconds"] < SECONDS_PER_GROWTH_STEP
                and factor * last["memory added"] < 0.7 * _available_memory(task)
            ):
                try:
                    if what.startswith("image"):
                        result = isolated(measure_image, task, models[trainer_name], files, value)
                    else:
                        result = isolated(measure_step, task, trainer_name, what, value)
                except (BrokenProcessPool, torch.OutOfMemoryError):
                    if last is None:
                        raise
            extrapolated = {key: factor * last[key] for key in ("seconds", "memory added")} if last else {}
            last = {"trainer": trainer_name, "value": value, "extrapolated": result is None, **(result or extrapolated)}
            rows.append(last)
    return rows


def _available_memory(task: Task) -> int:
    if task.device == "cuda":
        return torch.cuda.mem_get_info()[0]
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(meminfo["MemAvailable"].split()[0]) * 1024


def measure_all(
    result: dict[str, Any],
    task: Task,
    model: Path,
    images: Sequence[Sequence[str]],
    work: Path,
    *,
    steps: int,
    growth: bool,
) -> None:
    """Every measurement, one after the other, each in its own process; fills `result`.

    Raises:
        DemoError: The trained model has other settings than the plan.
    """
    trained = load_json(str(model / "plans.json"))["configurations"][task.configuration].get(PLAN_KEY, {})
    planned = isolated(planned_settings, task)
    if trained != planned:
        different = ", ".join(key for key in trained | planned if trained.get(key) != planned.get(key))
        raise DemoError(
            f"{model} was trained with other settings than the plan's ({different}). Leave out --model and delete it, "
            "to train again."
        )
    result |= {"task": vars(task), "hardware": isolated(hardware, task.torch_device)}
    for trainer in (STOCK, SWIPE):
        print(f"... {trainer}: training", flush=True)
        result[trainer] = {"training": isolated(measure_training, task, trainer, steps)}
    models = {STOCK: Path(result[STOCK]["training"]["model"]), SWIPE: model}
    for trainer, folder in models.items():
        for key, mirroring in (("mirroring", True), ("no mirroring", False)):
            print(f"... {trainer}: prediction, {key}", flush=True)
            result[trainer][f"prediction, {key}"] = isolated(
                measure_prediction, task, folder, images, work / trainer, mirroring=mirroring
            )
    print("... decoding", flush=True)
    result["decoding"] = isolated(measure_decoding, task, model, images)
    for what in GROWTH if growth else ():
        print(f"... growth: {what}", flush=True)
        result.setdefault("growth", {})[what] = growth_table(task, what, models, images[0])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep nnU-Net's messages to itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
