"""SwIPETrainer and its ablations inside nnU-Net, on tiny data, without further processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_helpers import (
    ABDOMEN,
    FUNDUS,
    PLANS,
    edit_json,
    make_trainer,
    narrow,
    nnunet_folders,
    plan,
    plans_file,
    write_phantom,
)
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_swipe import trainers
from nnunetv2_swipe.network.coordinates import N_SOURCE_CHANNELS
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.planners.plan_block import with_swipe_block
from nnunetv2_swipe.trainers import SwIPETrainer, swipe_trainer
from nnunetv2_swipe.training.lr_schedule import WarmupCosine

DATASETS = {2: (FUNDUS, "2d"), 3: (ABDOMEN, "3d_fullres")}
CHANGES = {
    "SwIPETrainer_noSPO": ("n_spo", 0),
    "SwIPETrainer_noMEA": ("multi_stage_attention", False),
    "SwIPETrainer_noRFB": ("rfb", False),
    "SwIPETrainer_noCascade": ("cascade", False),
    "SwIPETrainer_interpolatedStages": ("pool_to_patch_grid", False),
    "SwIPETrainer_noSourceCoordinates": ("source_coordinates", False),
    "SwIPETrainer_noGlobalConditioning": ("global_conditioning", False),
    "SwIPETrainer_noImageDecoder": ("image_decoder_features", []),
    "SwIPETrainer_unweightedPoints": ("point_weight_exponent", 0.0),
}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    """Both phantoms, planned by nnU-Net and by SwIPEPlanner; the latter's plans have narrow networks."""
    schedule = {"SWIPE_NUM_EPOCHS": "2", "SWIPE_ITERATIONS_PER_EPOCH": "2"}
    with nnunet_folders(tmp_path_factory.mktemp("trainer"), **schedule) as root:
        write_phantom(root / "nnUNet_raw", cases_2d=5)
        for number, configuration in ((901, "3d_fullres"), (902, "2d")):
            plan(number, "ExperimentPlanner", "-c", configuration)
            plan(number, "SwIPEPlanner", "-c", configuration)
        for dataset in (ABDOMEN, FUNDUS):
            edit_json(plans_file(dataset), narrow)
        yield root


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A results folder of its own for each test."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "results"


def make(trainer=SwIPETrainer, dims=3, **options):
    return make_trainer(trainer, *DATASETS[dims], **options)


def start(trainer):
    """Begin a training as `run_training` does; returns the first batch."""
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return next(trainer.dataloader_train)


def model_plan(trainer):
    """The configuration in the model folder's plan, which inference reads."""
    plans = json.loads(Path(trainer.output_folder_base, "plans.json").read_text())
    return plans["configurations"][trainer.configuration_name]


def test_every_ablation_is_known():
    assert set(trainers.__all__) == {"SwIPETrainer", *CHANGES}


@pytest.mark.parametrize(("name", "change"), CHANGES.items())
def test_ablation_changes_its_key_and_no_other(name, change):
    key, value = change
    whole, ablated = (make(t).config.to_dict() for t in (SwIPETrainer, getattr(trainers, name)))
    assert {k: ablated[k] for k in whole if ablated[k] != whole[k]} == {key: value}


@pytest.mark.parametrize("dims", DATASETS)
@pytest.mark.parametrize("name", ["SwIPETrainer", "SwIPETrainer_noSourceCoordinates"])
def test_trains_a_step(name, dims):
    trainer = make(getattr(trainers, name), dims)
    batch = start(trainer)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    loss = trainer.train_step(batch)["loss"]
    assert np.isfinite(loss)
    assert loss > 0
    # DistributedDataParallel waits for every gradient
    assert [n for n, p in trainer.network.named_parameters() if p.grad is None] == []
    assert any(not torch.equal(p, q) for p, q in zip(trainer.network.parameters(), before, strict=True))
    image_channels = {2: 3, 3: 1}[dims]
    framed = N_SOURCE_CHANNELS if name != "SwIPETrainer_noSourceCoordinates" else 0
    assert batch["data"].shape[1] == trainer.network.expected_channels == image_channels + framed


@pytest.mark.parametrize(
    ("device", "ddp", "allowed", "captured", "compiled"),
    [
        ("cuda", False, "t", True, False),
        ("cuda", False, "f", False, False),
        ("cuda", True, "t", False, True),
        ("cpu", False, "t", False, False),
    ],
)
def test_cuda_graph_takes_the_place_of_compilation(device, ddp, allowed, captured, compiled, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", allowed)
    trainer = make()
    trainer.device, trainer.is_ddp = torch.device(device), ddp
    assert trainer._captures_graph == captured
    assert trainer._do_i_compile() == compiled


@pytest.mark.parametrize("dims", DATASETS)
def test_the_batch_to_record_has_the_shapes_of_training_batches(dims):
    trainer = make(dims=dims)
    batch = start(trainer)
    data, target = trainer._example_batch()
    assert data.shape == batch["data"].shape
    assert target.shape == batch["target"].shape
    assert (data.dtype, target.dtype) == (batch["data"].dtype, batch["target"].dtype)


def test_the_batch_to_record_of_regions_has_a_channel_each_and_one_of_what_to_ignore():
    trainer = make()
    trainer.initialize()
    regions = {"background": 0, "whole": [1, 2], "part": [2], "ignore": 3}
    trainer.label_manager = LabelManager(regions, regions_class_order=[1, 2])
    _, target = trainer._example_batch()
    assert target.shape[1] == 3


def test_a_step_that_cannot_be_recorded_is_explained(monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(SwIPETrainer, "_captures_graph", True)
    monkeypatch.setattr(swipe_trainer, "capture_cuda_graph", fail)
    trainer = make()
    with pytest.raises(RuntimeError, match=r"CUDA graph \(operation not permitted\).*nnUNet_compile=f"):
        trainer.on_train_start()


def test_online_validation_scores_dense_predictions():
    trainer = make()
    start(trainer)
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        output = trainer.validation_step(next(trainer.dataloader_val))
    assert np.isfinite(output["loss"])
    voxels = np.prod(trainer.configuration_manager.patch_size) * trainer.batch_size
    assert all(0 <= output[key].sum() <= 2 * voxels for key in ("tp_hard", "fp_hard", "fn_hard"))
    assert output["tp_hard"].shape == (trainer.label_manager.num_segmentation_heads - 1,)


def test_stock_plan_gets_a_block_in_the_model_folder_only():
    planned = plans_file(ABDOMEN, "nnUNetPlans").read_text()
    trainer = make(plans="nnUNetPlans")
    trainer.on_train_start()
    assert model_plan(trainer)["swipe"] == trainer.config.to_dict()
    assert model_plan(trainer)["preprocessor_name"] == "SwIPEPreprocessor_withSourceFrame"
    assert plans_file(ABDOMEN, "nnUNetPlans").read_text() == planned
    # from the same plan and labels, trainer and planner derive the same
    swipe_plan = json.loads(plans_file(ABDOMEN).read_text())["configurations"]["3d_fullres"]["swipe"]
    assert trainer.config.to_dict().keys() == swipe_plan.keys()
    assert trainer.config.to_dict()["patch_size"] == swipe_plan["patch_size"]


def test_residual_encoder_plans_of_nnunet_serve_as_well():
    plan(901, "nnUNetPlannerResEncM", "--no_pp")
    trainer = make(plans="nnUNetResEncUNetMPlans")
    assert np.isfinite(trainer.train_step(start(trainer))["loss"])


def test_a_further_fold_takes_the_block_of_the_model_folder():
    first = make(plans="nnUNetPlans")
    first.on_train_start()
    derived = first.config.n_points

    def change(plans):
        plans["configurations"]["3d_fullres"]["swipe"]["n_points"] = derived + 1

    plans = Path(first.output_folder_base, "plans.json")
    edit_json(plans, change)
    assert make(plans="nnUNetPlans", fold=1).config.n_points == derived + 1
    edit_json(plans, lambda p: p["configurations"]["3d_fullres"]["swipe"].pop("n_spo"))
    with pytest.raises(ValueError, match=r"plans\.json, of folds trained before: SwIPE plan: key 'n_spo' is missing"):
        make(plans="nnUNetPlans", fold=1)
    plans.write_text("")  # of a killed training
    assert make(plans="nnUNetPlans", fold=1).config.n_points == derived
    first.on_train_start()
    # but not after the configuration itself has changed
    replanned = make(plans="nnUNetPlans", fold=1, edit=lambda c: c.update(batch_size=c["batch_size"] + 1))
    assert replanned.config.n_points == derived


def test_value_edited_by_hand_wins():
    def edit(configuration):
        configuration["swipe"].update(patch_size=[1, 2, 2], decoding="blended")

    trainer = make(edit=edit)
    trainer.on_train_start()
    assert (trainer.config.patch_size, trainer.config.decoding) == ((1, 2, 2), "blended")
    assert trainer.network.config == trainer.config
    assert model_plan(trainer)["swipe"]["patch_size"] == [1, 2, 2]


@pytest.mark.parametrize(
    ("key", "value"), [("patch_size", [3, 3, 3]), ("n_points", "many"), ("colour", "red"), ("strides", None)]
)
def test_invalid_edit_is_named(key, value):
    with pytest.raises(ValueError, match=f"SwIPE plan: .*{key}"):
        make(edit=lambda c: c["swipe"].update({key: value}))


@pytest.mark.parametrize(("key", "value"), [("spacing", None), ("patch_size", [16, 0, 16]), ("batch_size", "2")])
def test_invalid_edit_of_nnunets_own_values_is_named(key, value):
    with pytest.raises(ValueError, match=f"nnU-Net plan: '{key}'"):
        make(edit=lambda c: c.update({key: value}))


def test_regions_that_the_dataset_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r'"regions" is True, but dataset\.json declares exclusive classes'):
        make(edit=lambda c: c["swipe"].update(regions=True))


def test_block_of_another_dimension_is_refused():
    block = json.loads(plans_file(FUNDUS).read_text())["configurations"]["2d"]["swipe"]
    with pytest.raises(ValueError, match='"patch_size" has 2 axes'):
        make(edit=lambda c: c.update(swipe=block))


def test_another_preprocessor_brings_no_source_coordinates():
    trainer = make(plans="nnUNetPlans", edit=lambda c: c.update(preprocessor_name="AnotherPreprocessor"))
    assert trainer.config.source_coordinates is False
    assert trainer.configuration_manager.preprocessor_name == "AnotherPreprocessor"


@pytest.mark.parametrize("name", ["SwIPEPreprocessor_withSourceFrame", "DefaultPreprocessor"])
def test_without_source_coordinates_no_frame_is_asked_for(name):
    """Not even on the plan of a model folder that has them; input is checked all the same."""
    trainer = make(trainers.SwIPETrainer_noSourceCoordinates, edit=lambda c: c.update(preprocessor_name=name))
    assert trainer.configuration_manager.preprocessor_name == "SwIPEPreprocessor"


def test_checkpoint_restores_network_optimizer_and_epoch(tmp_path):
    trainer = make()
    trainer.train_step(start(trainer))
    trainer.current_epoch = 1
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    other = make(fold=1)
    other.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    torch.testing.assert_close(other.network.state_dict(), trainer.network.state_dict(), rtol=0, atol=0)
    assert other.current_epoch == 2
    assert other.optimizer.state_dict()["state"].keys() == trainer.optimizer.state_dict()["state"].keys() != set()


def test_a_training_is_resumed_as_long_as_it_began(tmp_path, monkeypatch):
    """Unless the environment says otherwise; also with the checkpoints written thereafter."""
    monkeypatch.setenv("SWIPE_NUM_EPOCHS", "40")
    trainer = make()
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "first.pth"))
    monkeypatch.delenv("SWIPE_NUM_EPOCHS")
    resumed = make(fold=1)
    resumed.load_checkpoint(str(tmp_path / "first.pth"))
    assert (resumed.num_epochs, resumed.save_every, resumed.num_iterations_per_epoch) == (40, 2, 2)
    assert resumed.lr_scheduler.num_epochs == 40
    monkeypatch.setenv("SWIPE_NUM_EPOCHS", "60")
    extended = make(fold=1)
    extended.load_checkpoint(str(tmp_path / "first.pth"))
    assert extended.num_epochs == extended.lr_scheduler.num_epochs == 60
    assert "began as one of 40 epochs of 2 iterations; it is set to 60 epochs" in Path(extended.log_file).read_text()
    extended.save_checkpoint(str(tmp_path / "second.pth"))
    monkeypatch.delenv("SWIPE_NUM_EPOCHS")
    again = make(fold=1)
    again.load_checkpoint(str(tmp_path / "second.pth"))
    assert again.num_epochs == 60


def test_a_training_uses_the_processors_of_its_job(monkeypatch):
    """nnU-Net's command sets as many threads as the machine has processors, and starts as many loaders."""
    monkeypatch.setattr(swipe_trainer, "available_cpus", lambda: 1)
    monkeypatch.setattr(swipe_trainer, "available_threads", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    trainer = make()
    trainer.initialize()
    assert threads == [1]
    assert "nnUNet_n_proc_DA" not in Path(trainer.log_file).read_text()
    monkeypatch.setattr(swipe_trainer, "get_allowed_n_proc_DA", lambda: 12)
    trainer = make(fold=1)
    trainer.initialize()
    assert "loads data in 12 processes, but this job may use 1" in Path(trainer.log_file).read_text()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint_best\.pth"):
        make().load_checkpoint(str(tmp_path / "checkpoint_best.pth"))


@pytest.mark.parametrize("fused", [True, None])
def test_checkpoint_of_another_device_leaves_the_optimizer_its_kernels(tmp_path, fused):
    trainer = make()
    trainer.train_step(start(trainer))
    trainer.optimizer.param_groups[0]["fused"] = fused
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    other = make()
    other.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert [group["fused"] for group in other.optimizer.param_groups] == [False]


def test_truncated_checkpoint_is_named(tmp_path):
    trainer = make()
    trainer.initialize()
    file = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = r"(?s)checkpoint_latest\.pth cannot be read .*Use another one.*checkpoint_best"
    with pytest.raises(RuntimeError, match=message):
        make().load_checkpoint(str(file))


def test_checkpoint_of_another_network_names_the_setting(tmp_path):
    trainer = make()
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    wider = make(edit=lambda c: c["swipe"].update(embedding_dim=24))
    with pytest.raises(RuntimeError, match=r"with 'embedding_dim' 16 .* now says 24"):
        wider.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    fewer = make(trainers.SwIPETrainer_noMEA)
    with pytest.raises(RuntimeError, match=r"with 'multi_stage_attention' True .* now says False"):
        fewer.load_checkpoint(str(tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize(
    ("changes", "fits"), [({"pool_to_patch_grid": False}, False), ({"n_points": 9, "decoding": "blended"}, True)]
)
def test_checkpoint_of_other_settings_is_refused_if_the_network_computes_otherwise(tmp_path, changes, fits):
    """Although no tensor has another shape."""
    trainer = make()
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    changed = make(edit=lambda c: c["swipe"].update(changes))
    if fits:
        changed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
        return
    with pytest.raises(RuntimeError, match=r"with 'pool_to_patch_grid' True .* now says False"):
        changed.load_checkpoint(str(tmp_path / "checkpoint.pth"))


def test_data_of_another_plan_that_preprocesses_otherwise_are_not_trained_on():
    """As after nnU-Net's own planning has been run again for more cases."""
    stock = plans_file(ABDOMEN, "nnUNetPlans")
    original = stock.read_text()
    edit_json(stock, lambda plans: plans["foreground_intensity_properties_per_channel"]["0"].update(mean=1e6))
    try:
        with pytest.raises(ValueError, match="'nnUNetPlans' uses the data in nnUNetPlans_3d_fullres, too"):
            make().initialize()
        make(plans="nnUNetPlans").initialize()  # it is their plan
    finally:
        stock.write_text(original)


def test_all_folds_of_a_model_have_one_network():
    first = make()
    start(first)
    first.save_checkpoint(str(Path(first.output_folder, "checkpoint_final.pth")))
    changed = make(fold=1, edit=lambda c: c["swipe"].update(pool_to_patch_grid=False))
    with pytest.raises(RuntimeError, match=r"fold_0 was trained with 'pool_to_patch_grid' True .* now says False"):
        changed.initialize()
    make(fold=1, edit=lambda c: c["swipe"].update(n_points=9)).initialize()
    make(edit=lambda c: c["swipe"].update(pool_to_patch_grid=False)).initialize()  # there is no other fold


def test_labels_with_a_gap_are_named():
    with pytest.raises(ValueError, match=r"declares the labels \[0, 1, 3\]; they must be 0, 1, 2"):
        with_swipe_block(
            json.loads(plans_file(ABDOMEN).read_text()),
            "3d_fullres",
            json.loads(plans_file(ABDOMEN, "dataset").read_text()) | {"labels": {"background": 0, "a": 1, "b": 3}},
            trainer_name="SwIPETrainer",
            changes={},
        )


def test_pretrained_weights_are_taken_but_for_the_classes(tmp_path):
    trainer = make()
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    pretrained = trainer.network.state_dict()
    network = SwIPENet(trainer.config, trainer.num_input_channels, num_classes=9)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_pretrained_weights(network, str(tmp_path / "checkpoint.pth"))
    for name, tensor in network.state_dict().items():
        expected = before[name] if ".seg_layers." in name else pretrained[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert sum(".seg_layers." in name for name in before) == 4  # weight and bias of both decoders


@pytest.mark.parametrize("variable", ["SWIPE_NUM_EPOCHS", "SWIPE_ITERATIONS_PER_EPOCH"])
def test_bad_environment_variable_is_named(monkeypatch, variable):
    monkeypatch.setenv(variable, "²")
    with pytest.raises(ValueError, match=f"{variable} is '²'; it must be a whole number from 1"):
        make()


def test_bad_number_of_nnunets_loader_processes_is_named(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    with pytest.raises(ValueError, match="nnUNet_n_proc_DA is 'many'; it must be a whole number from 0"):
        make()


def test_fewer_points_than_the_rule_gives_for_the_classes_are_logged():
    """As of a plan that was moved to a dataset of more classes, to fine-tune a model."""
    trainer = make(edit=lambda c: c["swipe"].update(n_points=100))
    trainer.initialize()
    heads = trainer.label_manager.num_segmentation_heads
    log = Path(trainer.log_file).read_text()
    assert f'"n_points" is 100, less than 64 for each of {heads} classes' in log
    usual = make()
    usual.initialize()
    assert ('n_points" is' in Path(usual.log_file).read_text()) == (usual.config.n_points < 64 * heads)


@pytest.mark.parametrize(
    ("epochs", "iterations", "validations", "save_every"), [(1000, 250, 50, 50), (100, 10, 2, 5), (2, 3, 1, 1)]
)
def test_schedule_follows_the_variables(monkeypatch, epochs, iterations, validations, save_every):
    monkeypatch.setenv("SWIPE_NUM_EPOCHS", str(epochs))
    monkeypatch.setenv("SWIPE_ITERATIONS_PER_EPOCH", str(iterations))
    trainer = make()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (epochs, iterations)
    assert (trainer.num_val_iterations_per_epoch, trainer.save_every) == (validations, save_every)


@pytest.mark.parametrize("step", ["train_step", "validation_step"])
def test_broken_image_is_named_by_its_case_before_the_weights_change(step):
    trainer = make()
    batch = start(trainer)
    batch["data"][1, -1, 0, 0, 0] = torch.nan
    batch["keys"] = ["sound", "broken"]
    with pytest.raises(RuntimeError, match="preprocessed image of broken holds NaN"):
        getattr(trainer, step)(batch)
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())


def test_an_overflow_that_stays_stops_the_training(monkeypatch):
    """In half precision, where a single one is for the GradScaler to skip."""
    monkeypatch.setattr(swipe_trainer, "amp_dtype", lambda _: torch.float16)
    trainer = make()
    batch = start(trainer)
    monkeypatch.setattr(trainer, "batch_loss", lambda *_: torch.tensor(torch.inf))
    monkeypatch.setattr(trainer, "_update", lambda _: None)
    for _ in range(swipe_trainer.MAX_OVERFLOWS - 1):
        trainer.train_step(batch)
    monkeypatch.setattr(trainer, "batch_loss", lambda *_: torch.tensor(1.0))
    trainer.train_step(batch)  # begins anew
    monkeypatch.setattr(trainer, "batch_loss", lambda *_: torch.tensor(torch.inf))
    for _ in range(swipe_trainer.MAX_OVERFLOWS - 1):
        trainer.train_step(batch)
    with pytest.raises(RuntimeError, match=r"50 times in a row.*SWIPE_AMP=off"):
        trainer.train_step(batch)


def test_divergence_stops_the_training():
    trainer = make()
    batch = start(trainer)
    with torch.no_grad():
        trainer.network.patch_decoder.seg_layers.bias[0] = torch.nan
    with pytest.raises(RuntimeError, match=r'(?s)epoch 0 is not finite, although .* Lower "initial_lr"'):
        trainer.train_step(batch)


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1e-3 / 2.001), (1, 1.001 / 2.001), (2, 1.0), (6, 0.5), (10, 0.0), (12, 0.0)]
)
def test_warm_up_is_linear_and_the_decay_a_cosine(epoch, factor):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = WarmupCosine(optimizer, initial_lr=4.0, num_epochs=10, warmup_epochs=2)
    scheduler.step(epoch)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(4 * factor, abs=1e-12)
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


class RecordingScaler:
    """A GradScaler that scales by a constant and notes what it is asked."""

    FACTOR = 1024.0

    def __init__(self, calls):
        self.calls = calls

    def scale(self, loss):
        self.calls.append("scale")
        return loss * self.FACTOR

    def unscale_(self, optimizer):
        self.calls.append("unscale")
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad /= self.FACTOR

    def step(self, optimizer):
        self.calls.append("step")
        optimizer.step()

    def update(self):
        self.calls.append("update")


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    """What happens on CUDA, with a scaler that notes it; the step is that of the CPU."""
    calls = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: (calls.append("clip"), clip(*a)))
    batch = start(make())
    weights = []
    for scaler in (None, RecordingScaler(calls)):
        torch.manual_seed(0)
        trainer = make()
        trainer.initialize()
        trainer.on_train_epoch_start()
        trainer.grad_scaler = scaler
        calls.clear()
        trainer.train_step(batch)
        weights.append(trainer.network.state_dict())
    assert calls == ["scale", "unscale", "clip", "step", "update"]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)


def test_the_same_epoch_draws_the_same_batch_and_points():
    """So that a resumed training goes on as if it had never stopped."""
    losses = []
    for drawn_before in (1, 5):
        torch.manual_seed(0)
        trainer = make()
        first = trainer.train_step(start(trainer))["loss"]
        torch.rand(drawn_before)
        np.random.random(drawn_before)  # noqa: NPY002  (what nnU-Net's loader draws from)
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
        second = trainer.train_step(next(trainer.dataloader_train))["loss"]
        losses.append((float(first), float(second)))
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_planned_by_name(folders):
    """The folder names that nnU-Net makes of trainer, plan and configuration."""
    trainer = make()
    assert Path(trainer.output_folder_base).name == f"SwIPETrainer__{PLANS}__3d_fullres"
    assert Path(trainer.preprocessed_dataset_folder) == (
        folders / "nnUNet_preprocessed" / ABDOMEN / "nnUNetPlans_3d_fullres"
    )
