"""A dataset.json that cannot be used is named, with the key."""

import json

import pytest
from nnunet_helpers import nnunet_folders

from nnunetv2_swipe.dataset_json import read_dataset_json
from nnunetv2_swipe.planners.swipe_planner import SwIPEPlanner

WHOLE = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
DATASET = "Dataset001_A"


def without(key):
    return {k: v for k, v in WHOLE.items() if k != key}


def write(content, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


@pytest.mark.parametrize("content", [WHOLE, without("channel_names") | {"modality": {"0": "CT"}}])
def test_whole_files_are_read(tmp_path, content):
    assert read_dataset_json(write(content, tmp_path)) == content


@pytest.mark.parametrize("key", WHOLE)
def test_a_missing_key_is_named(tmp_path, key):
    with pytest.raises(ValueError, match=rf'dataset\.json: the key "{key}" is missing\. Add it: .* such as'):
        read_dataset_json(write(without(key), tmp_path))


@pytest.mark.parametrize(
    ("key", "value"), [("labels", [0, 1]), ("labels", {}), ("file_ending", 1), ("file_ending", ""), ("labels", "a")]
)
def test_a_value_of_another_kind_is_named(tmp_path, key, value):
    with pytest.raises(ValueError, match=rf'dataset\.json: "{key}" is .* It must be'):
        read_dataset_json(write(WHOLE | {key: value}, tmp_path))


@pytest.mark.parametrize("key", WHOLE)
def test_the_planner_names_it(tmp_path, key):
    with nnunet_folders(tmp_path):
        write(without(key), tmp_path / "nnUNet_raw" / DATASET)
        with pytest.raises(ValueError, match=rf'nnUNet_raw.{DATASET}.dataset\.json: the key "{key}" is missing'):
            SwIPEPlanner(1)


def test_the_planner_names_a_damaged_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2_swipe.files._PAUSE_S", 0)
    with nnunet_folders(tmp_path):
        write(WHOLE, tmp_path / "nnUNet_raw" / DATASET)
        (tmp_path / "nnUNet_raw" / DATASET / "imagesTr").mkdir()
        (tmp_path / "nnUNet_raw" / DATASET / "imagesTr" / "a_0000.nii.gz").touch()
        folder = write(WHOLE, tmp_path / "nnUNet_preprocessed" / DATASET).parent
        (folder / "dataset_fingerprint.json").write_text('{"spacings": [')
        with pytest.raises(ValueError, match=r"dataset_fingerprint\.json is not a JSON file"):
            SwIPEPlanner(1)
