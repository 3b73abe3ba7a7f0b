"""Checkpoints: written beside the good one, read with an error that names them, compared with the plan."""

import copy
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from nnunet_helpers import ABDOMEN, edit_json, make_trainer, set_key
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.trainers import SwIPETrainer
from nnunetv2_swipe.trainers.checkpoints import read_checkpoint, require_same_plan

CONFIGURATION = "3d_fullres"
FINAL, LATEST, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))


def trainer_of(**options):
    return make_trainer(SwIPETrainer, ABDOMEN, CONFIGURATION, **options)


def load(model, folds=(0, 1), **options):
    predictor = SwIPEPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), folds, **options)
    return predictor


def cut(file, share):
    """Leave only the beginning of a file."""
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def change_checkpoint(file, change):
    checkpoint = torch.load(file, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(model):
    file = model / "fold_0" / FINAL
    trainer = trainer_of()
    trainer.initialize()
    before = file.read_bytes()

    def killed(_, name):
        Path(name).write_bytes(before[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        torch.save = killed
        trainer.save_checkpoint(str(file))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert file.read_bytes() == before
    assert list(file.parent.glob(".unfinished*"))
    trainer.save_checkpoint(str(file))
    assert file.read_bytes() != before
    assert not list(file.parent.glob(".unfinished*"))  # what the killed one had written


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_named_and_the_one_before_stays(model):
    resource = pytest.importorskip("resource")
    file = model / "fold_0" / FINAL
    trainer = trainer_of()
    trainer.initialize()
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as much as the disk has room for
    try:
        with pytest.raises((RuntimeError, OSError), match=rf"{FINAL} cannot be written"):
            trainer.save_checkpoint(str(file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert not list(file.parent.glob(".unfinished*"))


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_training_goes_on_from_the_next_checkpoint_if_one_is_damaged(model, share):
    folder = model / "fold_0"
    shutil.copy(folder / FINAL, folder / LATEST)
    change_checkpoint(folder / LATEST, set_key(["current_epoch"], 7))
    cut(folder / FINAL, share)
    trainer = trainer_of(continues=True)
    maybe_load_checkpoint(trainer, True, False)
    assert trainer.current_epoch == 7
    log = Path(trainer.log_file).read_text()
    assert re.search(rf"WARNING: The checkpoint \S+{FINAL} cannot be read", log)
    assert re.search(rf"going on from \S+{LATEST}, after epoch 6", log)

    cut(folder / LATEST, share)
    trainer = trainer_of(continues=True)
    maybe_load_checkpoint(trainer, True, False)
    assert f"going on from {folder / BEST}" in Path(trainer.log_file).read_text()

    cut(folder / BEST, share)
    with pytest.raises(RuntimeError, match=rf"{FINAL} cannot be read"):
        maybe_load_checkpoint(trainer_of(continues=True), True, False)


def test_nothing_takes_the_place_of_a_checkpoint_that_was_asked_for(model):
    """Validation is of the final checkpoint (--val), or of the best one (--val_best, also after --c)."""
    folder = model / "fold_0"
    shutil.copy(folder / FINAL, folder / LATEST)
    cut(folder / FINAL, 0.5)
    cut(folder / BEST, 0.5)
    with pytest.raises(RuntimeError, match=rf"{FINAL} cannot be read"):
        maybe_load_checkpoint(trainer_of(), False, True)
    trainer = trainer_of(continues=True)
    maybe_load_checkpoint(trainer, True, False)
    with pytest.raises(RuntimeError, match=rf"{BEST} cannot be read"):
        trainer.load_checkpoint(str(folder / BEST))


def test_checkpoints_hold_only_what_pytorch_reads_without_trust(model, monkeypatch):
    """So that nnU-Net's own commands can be told to run nothing, by PyTorch's variable."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert torch.load(model / "fold_0" / FINAL, weights_only=False)["logging"]["train_losses"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot be read \(.+\)\. It is damaged"),
        (b"no checkpoint", r"cannot be read \(.+\)\. It is damaged"),
        ({"network_weights": {}}, "is not a checkpoint of nnU-Net: it holds no 'trainer_name'"),
        ([1, 2], "is not a checkpoint of nnU-Net: it holds no 'network_weights'"),
    ],
)
def test_what_is_no_checkpoint_is_named(model, content, message):
    file = model / "fold_1" / FINAL
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(RuntimeError, match=rf"fold_1/{FINAL} {message}"):
        load(model)


def test_a_flipped_bit_is_noticed(model):
    """PyTorch reads such a file."""
    file = model / "fold_1" / FINAL
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"fold_1/{FINAL} cannot be read \(the checksum of its part"):
        load(model)


def test_a_model_is_loaded_as_nnunet_loads_it(model):
    ours = load(model)
    stock = super(SwIPEPredictor, SwIPEPredictor(device=torch.device("cpu")))
    stock.initialize_from_trained_model_folder(str(model), (0, 1))
    theirs = stock.__self__
    for ours_of_fold, theirs_of_fold in zip(ours.list_of_parameters, theirs.list_of_parameters, strict=True):
        torch.testing.assert_close(ours_of_fold, theirs_of_fold, rtol=0, atol=0)
    torch.testing.assert_close(ours.network.state_dict(), theirs.network.state_dict(), rtol=0, atol=0)
    for name in ("dataset_json", "trainer_name", "allowed_mirroring_axes"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.plans_manager.plans == theirs.plans_manager.plans
    assert [len(load(model, folds).list_of_parameters) for folds in (None, 0, "1")] == [2, 1, 1]


BLOCK = ("configurations", CONFIGURATION, "swipe")
EDITS = {
    (*BLOCK, "patch_size"): [2, 2, 2],
    (*BLOCK, "cascade"): False,
    (*BLOCK, "pool_to_patch_grid"): False,
    (*BLOCK, "embedding_dim"): 24,
    ("configurations", CONFIGURATION, "spacing"): [9.0, 9.0, 9.0],
    ("configurations", CONFIGURATION, "normalization_schemes"): ["NoNormalization"],
    ("configurations", CONFIGURATION, "use_mask_for_norm"): [True],
    ("configurations", CONFIGURATION, "patch_size"): [16, 16, 16],
    ("configurations", CONFIGURATION, "preprocessor_name"): "SwIPEPreprocessor",
    ("configurations", CONFIGURATION, "resampling_fn_data_kwargs"): {"is_seg": False, "order": 0},
    ("configurations", CONFIGURATION, "resampling_fn_seg_kwargs"): {"is_seg": True, "order": 0},
    ("transpose_forward",): [2, 1, 0],  # which is its own inverse
    ("image_reader_writer",): "NibabelIO",
    ("foreground_intensity_properties_per_channel", "0", "mean"): 1e6,
}
ALLOWED = {
    (*BLOCK, "n_points"): 9,
    (*BLOCK, "initial_lr"): 1e-5,
    (*BLOCK, "mise_levels"): 0,
    (*BLOCK, "decoding"): "blended",
    ("configurations", CONFIGURATION, "batch_size"): 7,
    ("configurations", CONFIGURATION, "data_identifier"): "elsewhere",
    ("configurations", CONFIGURATION, "batch_dice"): True,
    ("plans_name",): "renamed",
}


@pytest.mark.parametrize("path", EDITS, ids=lambda path: path[-1])
def test_a_plan_edited_after_training_is_refused(model, path):
    edit_json(model / "plans.json", set_key(path, EDITS[path]))
    if path == ("transpose_forward",):
        edit_json(model / "plans.json", set_key(("transpose_backward",), EDITS[path]))
    with pytest.raises(RuntimeError, match=rf"fold_0/{FINAL} was trained with '\S*{path[-1]}\S*' .* now says"):
        load(model)


def test_what_only_training_or_decoding_depends_on_may_be_edited(model):
    for path, value in ALLOWED.items():
        edit_json(model / "plans.json", set_key(path, value))
    assert load(model).network.config.decoding == "blended"


@pytest.mark.parametrize(
    ("key", "value"),
    [("channel_names", {"0": "A", "1": "B"}), ("labels", {"background": 0, "one": 1}), ("file_ending", ".nrrd")],
)
def test_dataset_json_edited_after_training_is_refused(model, key, value):
    edit_json(model / "dataset.json", set_key([key], value))
    with pytest.raises(RuntimeError, match=rf"was trained with '{key}\S*' .* in dataset.json; that in .* now says"):
        load(model)


def test_the_order_of_regions_counts_but_that_of_classes_does_not(model):
    arguments = read_checkpoint(model / "fold_0" / FINAL)["init_args"]
    plans, dataset = arguments["plans"], arguments["dataset_json"]
    turned = dict(reversed(dataset["labels"].items()))
    require_same_plan(arguments, plans, dataset | {"labels": turned}, model, "It")
    regions = {"background": 0, "whole": [1, 2], "part": [2]}
    trained = arguments | {"dataset_json": dataset | {"labels": regions}}
    turned = dict(reversed(regions.items()))
    with pytest.raises(RuntimeError, match="It was trained with 'labels'"):
        require_same_plan(trained, plans, dataset | {"labels": turned}, model, "It")


def test_a_value_that_is_no_number_is_no_edit(model):
    """Of a channel without foreground; it is not equal to itself."""
    arguments = read_checkpoint(model / "fold_0" / FINAL)["init_args"]
    arguments["plans"]["foreground_intensity_properties_per_channel"]["0"]["mean"] = float("nan")
    again = read_checkpoint(model / "fold_0" / FINAL)["init_args"]
    again["plans"]["foreground_intensity_properties_per_channel"]["0"]["mean"] = float("nan")
    require_same_plan(arguments, again["plans"], again["dataset_json"], model, "It")


def test_a_fold_of_another_plan_or_trainer_is_named(model):
    file = model / "fold_1" / FINAL
    change_checkpoint(file, set_key(["init_args", "plans", "configurations", CONFIGURATION, "spacing"], [9.0, 9, 9]))
    with pytest.raises(RuntimeError, match=rf"fold_1/{FINAL} was trained with 'spacing' \[9.0, 9, 9\]"):
        load(model)
    change_checkpoint(file, set_key(["trainer_name"], "SwIPETrainer_noSPO"))
    with pytest.raises(ValueError, match=rf"fold_1/{FINAL} is of SwIPETrainer_noSPO, 3d_fullres, but .*fold_0"):
        load(model)


def test_tensors_of_another_network_are_named(model):
    def widen(checkpoint):
        weights = checkpoint["network_weights"]
        weights["patch_decoder.seg_layers.bias"] = torch.zeros(99)

    change_checkpoint(model / "fold_1" / FINAL, widen)
    with pytest.raises(RuntimeError, match=rf"fold_1/{FINAL} does not fit .*seg_layers.bias has shape \(99,\)"):
        load(model)


@pytest.mark.usefixtures("model")
def test_a_training_does_not_go_on_with_data_preprocessed_otherwise():
    def edit(configuration):
        configuration["normalization_schemes"] = ["NoNormalization"]

    with pytest.raises(RuntimeError, match=rf"fold_0/{FINAL} was trained with 'normalization_schemes'"):
        maybe_load_checkpoint(trainer_of(continues=True, edit=edit), True, False)
    with pytest.raises(RuntimeError, match="fold_0 was trained with 'normalization_schemes'"):
        trainer_of(fold=2, edit=edit).initialize()


def test_our_preprocessor_without_source_frame_is_nnunets(model):
    """Trainings on plans of nnU-Net began with its preprocessor, and go on with ours, which checks the input."""
    trained = read_checkpoint(model / "fold_0" / FINAL)["init_args"]
    plans = copy.deepcopy(trained["plans"])
    for plan, name in ((trained["plans"], "DefaultPreprocessor"), (plans, "SwIPEPreprocessor")):
        plan["configurations"][CONFIGURATION]["preprocessor_name"] = name
    require_same_plan(trained, plans, trained["dataset_json"], model, "it")
    plans["configurations"][CONFIGURATION]["preprocessor_name"] = "SwIPEPreprocessor_withSourceFrame"
    with pytest.raises(RuntimeError, match="it was trained with 'preprocessor_name'"):
        require_same_plan(trained, plans, trained["dataset_json"], model, "it")


@pytest.mark.parametrize("key", ["labels", "file_ending", "channel_names"])
def test_a_models_dataset_json_without_a_key_is_named(model, key):
    edit_json(model / "dataset.json", lambda content: content.pop(key))
    with pytest.raises(ValueError, match=rf'dataset\.json: the key "{key}" is missing'):
        load(model)


def test_too_little_memory_is_no_damage(model, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
        read_checkpoint(model / "fold_0" / FINAL)
