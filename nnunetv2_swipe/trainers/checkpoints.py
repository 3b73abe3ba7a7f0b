"""Reading checkpoints without running anything of them, and checks that they belong to a plan and a network."""

import argparse
import json
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_swipe.config import PLAN_KEY
from nnunetv2_swipe.files import remove_unfinished, replaced
from nnunetv2_swipe.planners.plan_block import STOCK_PREPROCESSOR, SWIPE_PREPROCESSOR, read_block
from nnunetv2_swipe.planners.shared_data import PREPROCESSING_KEYS, PREPROCESSING_KEYS_OF_PLAN
from nnunetv2_swipe.trust import CHECKPOINT_GLOBALS, TRUST_VARIABLE, is_trusted_by_environment

RESUMED = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""Checkpoints that nnU-Net resumes a training from: the first that is there."""

# nnU-Net's own keys that predicted labels depend on, besides SwIPE's block. Not among them: the batch size, names of
# folders, and the architecture and the resampling of probabilities, of which SwIPE uses neither.
_KEYS = (*PREPROCESSING_KEYS, "patch_size", "previous_stage")
_KEYS_OF_PLAN = (*PREPROCESSING_KEYS_OF_PLAN, "transpose_backward", "label_manager")
_KEYS_OF_DATASET = ("channel_names", "modality", "labels", "regions_class_order", "file_ending")


_NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory")
"""What PyTorch's errors say that are no fault of the file."""


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is cut off, or not a checkpoint at all."""


def read_checkpoint(filename: str | Path, *, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net to the CPU.

    Args:
        filename: The file.
        trust: Read whatever it holds, also what runs code.

    Raises:
        OSError: There is no such file, or no access to it.
        DamagedCheckpointError: It is damaged, or not a checkpoint.
        RuntimeError: It holds more than tensors, plain Python and numbers of NumPy. Nothing of it was run.
    """
    checkpoint = _read(filename, trust)
    missing = _missing(checkpoint)
    if missing is not None:
        raise DamagedCheckpointError(
            f"{filename} is not a checkpoint of nnU-Net: it holds no {missing!r}. Move it away, or put the checkpoint "
            "there."
        )
    return checkpoint


def require_plain_pretrained_weights() -> None:
    """Check the file of -pretrained_weights, if this is nnUNetv2_train: nnU-Net's own code will read it.

    Raises:
        OSError: There is no such file, or no access to it.
        RuntimeError: It is damaged, or holds more than plain data and `SWIPE_TRUST` is not 1. Nothing of it was run.
    """
    program, *arguments = sys.argv or [""]
    if Path(program).stem not in ("nnUNetv2_train", "run_training"):
        return
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-p")  # else it would count as short for the other
    parser.add_argument("-pretrained_weights")
    file = parser.parse_known_args(arguments)[0].pretrained_weights
    if file is not None:
        _read(file, is_trusted_by_environment())


def _read(filename: str | Path, trust: bool) -> Any:  # noqa: ANN401
    """What a file of PyTorch holds; the errors are those of `read_checkpoint`."""
    try:
        _require_intact(filename)
        with torch.serialization.safe_globals(CHECKPOINT_GLOBALS):
            return torch.load(filename, map_location="cpu", weights_only=not trust)
    except (OSError, MemoryError, ImportError):  # no fault of the file
        raise
    except Exception as error:
        if _NO_MEMORY.search(str(error)):
            raise
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and (refused or zipfile.is_zipfile(filename)):
            raise RuntimeError(
                f"The checkpoint {filename} refers to {refused[1] if refused else 'something'}, which is no plain "
                "data: reading it could run code. If you trust whoever made the file, use --trust of this package's "
                f"commands, or for nnUNetv2_train set {TRUST_VARIABLE}=1."
            ) from error
        raise DamagedCheckpointError(
            f"The checkpoint {filename} cannot be read ({_in_short(error)}). It is damaged or was cut off while being "
            f"written. Use another one of its folder ({', '.join(RESUMED)}): -chk names it; nnUNetv2_train --c takes "
            "it by itself."
        ) from error


def read_first_whole(
    files: Sequence[str | Path], *, trust: bool = False
) -> tuple[str, dict[str, Any], list[DamagedCheckpointError]]:
    """Read the first of some checkpoints that is not damaged.

    Args:
        files: One at least.
        trust: As in `read_checkpoint`.

    Returns:
        Its name, what it holds, and what is wrong with those before it.

    Raises:
        OSError: A file is not there, or there is no access to it.
        DamagedCheckpointError: All are damaged; the first of them is named.
        RuntimeError: One holds more than plain data.
    """
    damaged: list[DamagedCheckpointError] = []
    for file in files:
        try:
            return str(file), read_checkpoint(file, trust=trust), damaged
        except DamagedCheckpointError as error:  # noqa: PERF203
            damaged.append(error)
    raise damaged[0]


def with_substitutes(filename: str | Path) -> list[Path]:
    """A checkpoint and those beside it that a training may be resumed from as well, in nnU-Net's order."""
    file = Path(filename)
    others = [file.with_name(name) for name in RESUMED if name != file.name]
    return [file, *(other for other in others if other.is_file())]


@contextmanager
def replaced_checkpoint(filename: str) -> Iterator[str]:
    """Context that gives a path to save a checkpoint to; it takes the place of an older one when it is complete.

    Raises:
        OSError: The file cannot be written; one that was there before is still there.
        RuntimeError: PyTorch cannot write it, for example on a full disk; one that was there is still there.
    """
    remove_unfinished(filename)
    with replaced(filename) as unfinished:
        try:
            yield str(unfinished)
        except RuntimeError as error:
            raise RuntimeError(
                f"The checkpoint {filename} cannot be written ({_in_short(error)}). Is the disk full? Make room, and "
                "go on with --c from the checkpoint that was written before."
            ) from error


def plain_numbers(value: Any) -> Any:  # noqa: ANN401
    """Numbers of NumPy, also in lists, as Python's own, which PyTorch reads without being told to trust them."""
    if isinstance(value, list):
        return [plain_numbers(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def require_fit(checkpoint: Mapping[str, Any], network: nn.Module, filename: str | Path) -> None:
    """RuntimeError if a checkpoint's tensors are not those of a network, naming the first."""
    network = getattr(network, "module", network)
    network = getattr(network, "_orig_mod", network)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    found = {k.removeprefix("module."): tuple(v.shape) for k, v in checkpoint["network_weights"].items()}
    for key in [*expected, *found]:
        there, here = found.get(key, "none (missing)"), expected.get(key, "none (missing)")
        if there != here:
            raise RuntimeError(
                f"The checkpoint {filename} does not fit the plan's network: {key} has shape {there} in the checkpoint "
                f"and {here} in the network. Was the {PLAN_KEY!r} block of the plan changed after training?"
            )


def require_same_plan(
    trained: Mapping[str, Any],
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    folder: str | Path,
    subject: str,
) -> None:
    """Compare the plan that something was trained with to a plan as it is now.

    What only training or decoding depends on may differ.

    Args:
        trained: A checkpoint's "init_args": "plans", "configuration" and "dataset_json" of the training.
        plans: nnU-Net's plan now, with SwIPE's block.
        dataset_json: dataset.json now.
        folder: Where the plan and dataset.json are; for the message.
        subject: What was trained; the message begins with it.

    Raises:
        RuntimeError: The network, the preprocessing, or channels and labels are others; the key is named.
        ValueError: The plan now is not valid.
    """
    then, now = (PlansManager(dict(p)).get_configuration(trained["configuration"]) for p in (trained["plans"], plans))
    block, config = then.configuration.get(PLAN_KEY, {}), read_block(now)
    key = config.differs_from(block)
    pairs: list[tuple[str, str, Any, Any]] = [
        *([] if key is None else [(f"the {PLAN_KEY!r} block of the plan", key, block[key], config.to_dict()[key])]),
        ("the plan", "preprocessor_name", _preprocessor(then), _preprocessor(now)),
        *(("the plan", key, then.configuration.get(key), now.configuration.get(key)) for key in _KEYS),
        *(("the plan", key, trained["plans"].get(key), plans.get(key)) for key in _KEYS_OF_PLAN),
        *(("dataset.json", key, trained["dataset_json"].get(key), dataset_json.get(key)) for key in _KEYS_OF_DATASET),
        ("dataset.json", "labels", _order_of_regions(trained["dataset_json"]), _order_of_regions(dataset_json)),
    ]
    differences = (_first_difference(place, path, old, new) for place, path, old, new in pairs)
    found = next((difference for difference in differences if difference is not None), None)
    if found is not None:
        place, path, old, new = found
        raise RuntimeError(
            f"{subject} was trained with {path!r} {old!r} in {place}; that in {folder} now says {new!r}. Set it back, "
            "or delete what was trained and begin anew."
        )


def _preprocessor(configuration: ConfigurationManager) -> str | None:
    """The name of the preprocessor; ours without the source frame makes what nnU-Net's makes."""
    name = configuration.configuration.get("preprocessor_name")
    return STOCK_PREPROCESSOR if name == SWIPE_PREPROCESSOR else name


def _require_intact(filename: str | Path) -> None:
    """BadZipFile if a part of a checkpoint has another checksum than it was written with; PyTorch does not look."""
    if zipfile.is_zipfile(filename):
        with zipfile.ZipFile(filename) as archive:
            part = archive.testzip()
        if part is not None:
            raise zipfile.BadZipFile(f"the checksum of its part {part} is wrong")


def _missing(checkpoint: object) -> str | None:
    """The first key, if any, that every checkpoint of nnU-Net holds and this object does not."""
    if not isinstance(checkpoint, dict):
        return "network_weights"
    missing = [key for key in ("network_weights", "trainer_name", "init_args") if key not in checkpoint]
    arguments = checkpoint.get("init_args")
    held = arguments if isinstance(arguments, dict) else {}
    missing += [key for key in ("plans", "configuration", "dataset_json") if key not in held]
    return missing[0] if missing else None


def _first_difference(place: str, path: str, old: Any, new: Any) -> tuple[str, str, Any, Any] | None:  # noqa: ANN401
    """Place, keys to the first value that differs (joined by dots) and both values; None if all are equal."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = (_first_difference(place, f"{path}.{key}", old.get(key), new.get(key)) for key in [*old, *new])
        return next((difference for difference in found if difference is not None), None)
    alike = old == new or json.dumps(old, default=repr) == json.dumps(new, default=repr)  # NaN is equal to nothing
    return None if alike else (place, path, old, new)


def _order_of_regions(dataset_json: Mapping[str, Any]) -> list[str] | None:
    """The names of regions, whose order is that of the network's outputs; None if labels are no regions."""
    labels = dataset_json["labels"]
    return list(labels) if any(isinstance(value, (list, tuple)) for value in labels.values()) else None


def _in_short(error: Exception) -> str:
    """The first sentence of an error; PyTorch's go on with advice that does not help here."""
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle is damaged"
    return re.split(r"\.\s|\n", str(error))[0] or type(error).__name__
