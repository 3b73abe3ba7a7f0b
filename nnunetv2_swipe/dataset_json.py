"""nnU-Net's dataset.json, with the keys that everything rests on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_swipe.files import read_json_object

_REQUIRED: dict[str, tuple[type, str]] = {
    "labels": (dict, 'the classes by name, such as {"background": 0, "liver": 1}'),
    "channel_names": (dict, 'the channels by number, such as {"0": "CT"}'),
    "file_ending": (str, 'how the names of all images and labels end, such as ".nii.gz"'),
}


def read_dataset_json(file: str | Path) -> dict[str, Any]:
    """Read a dataset.json.

    Raises:
        ValueError: It is no JSON object or lacks a key; the message names file and key.
        OSError: There is no such file, or no access to it.
    """
    content = read_json_object(file)
    require_dataset_json(content, file)
    return content


def require_dataset_json(content: Mapping[str, Any], file: str | Path) -> None:
    """Check that a dataset.json has the keys that nnU-Net and SwIPE read.

    Args:
        content: What the file holds.
        file: Its path, for the message.

    Raises:
        ValueError: A key is missing or has a value of another kind.
    """
    for key, (kind, meaning) in _REQUIRED.items():
        value = content.get(key)
        if key == "channel_names" and value is None:
            value = content.get("modality")  # its name in older datasets, which nnU-Net takes, too
        if value is None:
            raise ValueError(f'{file}: the key "{key}" is missing. Add it: {meaning}.')
        if not isinstance(value, kind) or not value:
            raise ValueError(f'{file}: "{key}" is {value!r}. It must be {meaning}.')
