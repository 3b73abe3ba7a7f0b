"""Files of others are read as plain data: pickles call nothing, and names in a plan are looked up before their use."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import nnunetv2
import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager

TRUST_VARIABLE = "SWIPE_TRUST"
"""Environment variable; 1: training, which has no flags of ours, reads checkpoints and pickles whatever they hold."""

_NUMBERS = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]
_SCALAR = np.float64(0).__reduce__()[0]
CHECKPOINT_GLOBALS: list[Any] = [
    np.dtype,
    *{type(np.dtype(code)) for code in _NUMBERS},
    *[(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],  # before and since NumPy 2
]
"""What checkpoints of nnU-Net hold besides tensors and plain Python: NumPy's numbers."""

_PICKLE_GLOBALS = {
    *("numpy.dtype", "numpy.ndarray", "collections.OrderedDict"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(f"builtins.{name}" for name in ("bytearray", "complex", "frozenset", "set", "slice")),
}
"""What a pickle of plain Python and NumPy arrays refers to."""

_KINDS: dict[str, tuple[str, str, type | None]] = {
    "image_reader_writer": ("reader of images", "imageio", BaseReaderWriter),
    "label_manager": ("label manager", "utilities.label_handling", LabelManager),
    "preprocessor_name": ("preprocessor", "preprocessing", DefaultPreprocessor),
    "normalization_schemes": ("normalisation", "preprocessing.normalization", ImageNormalization),
    "resampling_fn_data": ("function that resamples", "preprocessing.resampling", None),
    "resampling_fn_seg": ("function that resamples", "preprocessing.resampling", None),
    "resampling_fn_probabilities": ("function that resamples", "preprocessing.resampling", None),
}
"""Keys of a plan that name code: what it is, the package of nnU-Net that it looks in, the base class (of a class)."""


class _NotPlainError(Exception):
    """A pickle refers to something that is no plain data."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if f"{module}.{name}" not in _PICKLE_GLOBALS:
            raise _NotPlainError(f"{module}.{name}")
        return super().find_class(module, name)


def is_trusted_by_environment() -> bool:
    """Whether `SWIPE_TRUST` says that whatever is read comes from somebody the user trusts."""
    return os.environ.get(TRUST_VARIABLE) == "1"


def read_pickle(file: str | Path) -> Any:  # noqa: ANN401
    """Read a pickle of plain Python values and NumPy arrays, such as a preprocessed case's properties.

    With `SWIPE_TRUST=1` it may hold anything.

    Raises:
        ValueError: It is damaged, or holds something else; the message names the file. Nothing of it was run.
        OSError: There is no such file, or no access to it.
    """
    unpickler = pickle.Unpickler if is_trusted_by_environment() else _PlainUnpickler
    with Path(file).open("rb") as stream:
        try:
            return unpickler(stream).load()
        except (OSError, MemoryError):  # no fault of the file
            raise
        except _NotPlainError as error:
            raise ValueError(
                f"{file} refers to {error}, which is no plain data: reading it could run code. Preprocess the dataset "
                f"anew. If you trust whoever made the file, set {TRUST_VARIABLE}=1."
            ) from error
        except Exception as error:
            raise ValueError(f"{file} cannot be read ({error}). It is damaged; preprocess the dataset anew.") from error


def require_known_names(plans: Mapping[str, Any], configuration: Mapping[str, Any], file: str | Path) -> None:
    """ValueError if a plan names code that is not a reader, preprocessor and so on, installed here.

    nnU-Net calls what a plan names. So it must be found where nnU-Net looks for such things, and be one.

    Args:
        plans: nnU-Net's plan.
        configuration: Its configuration that is used, inheritance resolved; empty if none is.
        file: Of the plan; for the message.
    """
    for key, (kind, _, _) in _KINDS.items():
        values = {**plans, **configuration}.get(key)
        for name in values if isinstance(values, list) else [values]:
            if name is not None and not is_known(key, name):
                raise ValueError(
                    f"{file}: {key!r} is {name!r}, which is no {kind} that is installed here. Restore the plan, or "
                    "install what it needs."
                )


def is_known(key: str, name: object) -> bool:
    """Whether the name of a reader, preprocessor and so on is that of one that nnU-Net finds here.

    Args:
        key: The key of a plan that gives the name: "image_reader_writer", "label_manager", "preprocessor_name",
            "normalization_schemes" (of one channel) or "resampling_fn_...".
        name: The name.
    """
    _, package, base = _KINDS[key]
    if not (isinstance(name, str) and name.isidentifier()):
        return False
    folder = Path(nnunetv2.__path__[0], *package.split("."))
    found = recursive_find_python_class(str(folder), name, f"nnunetv2.{package}")
    if base is not None:
        return isinstance(found, type) and issubclass(found, base)
    return isinstance(found, FunctionType) and found.__module__.startswith(f"nnunetv2.{package}.")
