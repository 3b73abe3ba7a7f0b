"""The accuracy benchmark: its scores on cases worked out by hand, its study files, and a whole run on tiny data."""

import dataclasses
import itertools
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunet_helpers import ABDOMEN, PLANS, edit_json, narrow, nnunet_folders, plan, plans_file, write_phantom

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import accuracy_study
import benchmark_accuracy
import score_model
from accuracy_study import Cell, Model, Study, read_study
from benchmark_accuracy import report, run_study, train_cell
from benchmark_speed import predictor_of
from calibration import calibration, expected_calibration_error
from demo import DemoError
from nnunetv2_swipe.inference.grid import predict_logits_on_grid
from nnunetv2_swipe.network.coordinates import source_channels
from nnunetv2_swipe.report.scores import score_case
from nnunetv2_swipe.trainers import SwIPETrainer

STUDIES = sorted((Path(__file__).parents[1] / "scripts" / "studies").glob("*.toml"))
CUBE = (slice(2, 8), slice(2, 8), slice(2, 8))


def block(*slices):
    mask = np.zeros((12, 12, 12), dtype=np.uint8)
    mask[slices] = 1
    return mask


class TestScores:
    def score(self, prediction, truth, spacing=(1, 1, 1)):
        return score_case(prediction, truth, structures={"1": [1]}, spacing=spacing).get("1")

    def test_a_perfect_segmentation(self):
        assert self.score(block(*CUBE), block(*CUBE)) == {"Dice": 1, "NSD": 1, "HD95": 0}

    def test_a_shifted_cube(self):
        """Six voxels wide, shifted by two along an axis with voxels of 3 mm: overlap 4/6, two faces 6 mm away."""
        shifted = block(slice(4, 10), slice(2, 8), slice(2, 8))
        scores = self.score(shifted, block(*CUBE), spacing=(3, 1, 1))
        assert scores["Dice"] == pytest.approx(4 / 6)
        assert scores["HD95"] == pytest.approx(6)
        assert 0.3 < scores["NSD"] < 0.9

    def test_surfaces_within_a_millimetre_agree(self):
        shifted = block(slice(4, 10), slice(2, 8), slice(2, 8))
        assert self.score(shifted, block(*CUBE), spacing=(0.4, 1, 1))["NSD"] == pytest.approx(1)

    def test_two_dimensions(self):
        truth = block(*CUBE)[5:6]
        scores = self.score(np.roll(truth, 1, 1), truth)
        assert scores == {"Dice": pytest.approx(5 / 6), "NSD": 1, "HD95": 1}

    def test_two_dimensions_on_a_coarser_grid(self):
        """Its pixels are four of the training resolution wide, twice the tolerance."""
        truth = block(*CUBE)[5:6]
        scores = self.score(np.roll(truth, 1, 1), truth, spacing=(999, 4, 4))
        assert scores["HD95"] == 4
        assert scores["NSD"] < 0.9

    def test_a_structure_in_one_map_only_has_the_worst_scores(self):
        nothing = np.zeros_like(block(*CUBE))
        worst = {"Dice": 0, "NSD": 0, "HD95": pytest.approx(math.sqrt(36**2 + 2 * 12**2))}
        assert self.score(block(*CUBE), nothing, spacing=(3, 1, 1)) == worst
        assert self.score(nothing, block(*CUBE), spacing=(3, 1, 1)) == worst
        assert self.score(nothing, nothing) is None

    def test_several_structures_are_scored_apart(self):
        truth = block(*CUBE)
        truth[9:11] = 2
        found = score_case(
            np.where(truth == 2, 0, truth),
            truth,
            structures={"1": [1], "2": [2], "both": [1, 2], "3": [3]},
            spacing=(1, 1, 1),
        )
        n_first, n_second = (truth == 1).sum(), (truth == 2).sum()
        expected = {"1": 1, "2": 0, "both": 2 * n_first / (2 * n_first + n_second)}
        assert {name: scores["Dice"] for name, scores in found.items()} == pytest.approx(expected)

    def test_what_is_ignored_does_not_count(self):
        truth = block(*CUBE)
        truth[:, :, 5:] = 9
        found = score_case(block(*CUBE), truth, structures={"1": [1]}, spacing=(1, 1, 1), ignore_label=9)
        assert found == {"1": {"Dice": 1, "NSD": 1, "HD95": 0}}

    @pytest.mark.parametrize("regions", [False, True])
    def test_calibration(self, regions):
        """Confidence 0.9 where 7 of 10 voxels are right, 0.7 where 7 of 10 are: off by 0.2 for half of the voxels."""
        confidence = np.array([0.9] * 10 + [0.7] * 10)
        truth = np.array([1] * 7 + [0] * 3 + [1] * 7 + [0] * 3)
        probabilities = confidence[None] if regions else np.stack((1 - confidence, confidence))
        sums = calibration(probabilities, truth, regions=[[1]] if regions else [])
        assert sums[0].sum() == 20
        assert expected_calibration_error(sums) == pytest.approx(0.1)
        assert expected_calibration_error(sums + sums) == pytest.approx(0.1)

    def test_calibration_of_many_voxels_is_summed_exactly(self):
        confidence = np.full(1 << 20, 0.99, dtype=np.float32)
        sums = calibration(np.stack((1 - confidence, confidence)), np.ones(len(confidence)), regions=[])
        assert expected_calibration_error(sums) == pytest.approx(0.01, rel=1e-5)


def study_text(models='[[models]]\ntrainer = "SwIPETrainer"', **keys):
    content = {"dataset": '"polyps"', "seconds": 1} | keys
    return "\n".join([*[f"{key} = {value}" for key, value in content.items() if value is not None], models])


class TestStudyFiles:
    @pytest.mark.parametrize("file", STUDIES, ids=lambda f: f.stem)
    def test_those_of_the_project(self, file):
        study = read_study(file)
        of_swipe_alone = file.stem.startswith(("ablations", "batch_size", "defaults", "point_weights_polyps"))
        assert study.models[0].trainer == ("SwIPETrainer" if of_swipe_alone else "nnUNetTrainer")
        assert len(study.models) > 1
        assert len({cell.key for cell in study.cells()}) == len(list(study.cells()))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("dataset = ", "cannot be read as TOML"),
            (study_text(dataset='"liver"'), "'liver'; allowed: hippocampus, polyps"),
            (study_text(dataset=None), "'dataset' is missing"),
            (study_text(models=""), "'models' is missing"),
            (study_text(models="models = 3"), r"\[\[models\]\]"),
            (study_text(seconds=None), 'either "iterations" or "seconds"'),
            (study_text(iterations=1), 'either "iterations" or "seconds"'),
            (study_text(seconds=0), "whole number above 0"),
            (study_text(seconds='"100"'), "whole number above 0"),
            (study_text(seeds=1), '"seeds" is 1'),
            (study_text(seeds="[]"), '"seeds"'),
            (study_text(seeds='["a"]'), '"seeds"'),
            (study_text(training_fractions="[2]"), "1 at most"),
            (study_text(training_fractions='["x"]'), "1 at most"),
            (study_text(output_scales="[0]"), '"output_scales" is .0.; it must be a list of numbers above 0'),
            (study_text(input_scales="2"), '"input_scales" is 2'),
            (study_text('[[models]]\ntrainer = "SwIPETrainer"\nbatch_size = 0'), '"batch_size" of SwIPETrainer is 0'),
            (study_text(fold=7), "allowed: 0 to 4"),
            (study_text(fold="true"), '"fold" is True; allowed: 0 to 4'),
            (study_text(fold="1.0"), '"fold" is 1.0; allowed: 0 to 4'),
            (study_text(seeds="[-1]"), r'"seeds" is \[-1\]; it must be a list of whole numbers from 0'),
            (study_text(seeds="[1, 1]"), "each value may stand there once"),
            (study_text('[[models]]\ntrainer = "SwIPETrainer"\nsettings = ["n_spo"]'), "it must be a table"),
            (study_text('[[models]]\ntrainer = "SwIPETrainer"\nname = 3'), "it must be text"),
            (study_text(epochs=3), "unknown key 'epochs'"),
            (study_text('[[models]]\nplans = "nnUNetPlans"'), "'trainer' is missing"),
            (study_text('[[models]]\ntrainer = "NoTrainer"'), "no trainer 'NoTrainer'"),
            (study_text('[[models]]\ntrainer = "SwIPETrainer"\nplans = "P"'), "'P'; allowed: nnUNetPlans"),
            (study_text('[[models]]\ntrainer = "SwIPETrainer"\nsettings = {S = 4}'), "no setting 'S'"),
            (study_text('[[models]]\ntrainer = "nnUNetTrainer"\nsettings = {rfb = true}'), "allowed: none"),
        ],
    )
    def test_what_is_wrong_is_named_with_the_file(self, tmp_path, text, message):
        file = tmp_path / "study.toml"
        file.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            read_study(file)
        assert str(file) in str(error.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"none\.toml"):
            read_study(tmp_path / "none.toml")

    def test_a_cell_is_known_by_all_that_it_depends_on_but_its_name(self):
        cell = Cell("polyps", Model("SwIPETrainer"), 1, "seconds", 0, 0, 1.0)
        changes = {
            "dataset": "hippocampus",
            "budget": 2,
            "unit": "iterations",
            "fold": 1,
            "seed": 1,
            "training_fraction": 0.5,
        }
        of_model = {"trainer": "SwIPETrainer_noRFB", "plans": PLANS, "batch_size": 3, "settings": {"rfb": False}}
        others = [dataclasses.replace(cell, **{key: value}) for key, value in changes.items()]
        others += [
            dataclasses.replace(cell, model=dataclasses.replace(cell.model, **{key: value}))
            for key, value in of_model.items()
        ]
        assert len({c.key for c in (cell, *others)}) == 1 + len(changes) + len(of_model)
        assert dataclasses.replace(cell, model=Model("SwIPETrainer", name="ours")).key == cell.key


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A planned dataset, cells measured in this process; yields the work folder and the list of cells measured."""
    root = tmp_path_factory.mktemp("accuracy")
    measured = []
    with nnunet_folders(root), pytest.MonkeyPatch.context() as patch:
        write_phantom(root / "nnUNet_raw", cases_3d=10)
        plan(901, "SwIPEPlanner", "-c", "3d_fullres", "-np", 1, "-npfp", 1)
        edit_json(plans_file(ABDOMEN), narrow)
        patch.setitem(benchmark_accuracy.DATASETS, "phantom", (ABDOMEN, "3d_fullres"))
        patch.setitem(accuracy_study.PLANNERS, PLANS, "SwIPEPlanner")

        def isolated(function, *arguments, waiting, device):
            measured.append(arguments)
            waiting()
            with pytest.MonkeyPatch.context() as process:
                process.setattr(SwIPETrainer, "config_changes", {})
                return function(*arguments, device=device)

        patch.setattr(benchmark_accuracy, "isolated", isolated)
        yield root / "accuracy", measured


def results_of(study, folder):
    """Of a study none of whose cells fails."""
    results, failures = run_study(study, folder, "cpu")
    assert not failures
    return results


MODELS = (
    Model("nnUNetTrainer", PLANS),
    Model("SwIPETrainer", PLANS),
    Model("SwIPETrainer", PLANS, settings={"n_points": 64}, name="few points"),
)


@pytest.fixture(scope="module")
def finished(phantom):
    """A study of six cells that has been run; yields it, its folder, its results and the cells measured."""
    folder, measured = phantom
    study = Study("phantom", MODELS, iterations=2, training_fractions=(0.5, 1.0))
    return study, folder, results_of(study, folder), measured


def test_every_cell_is_trained_with_its_budget_and_scored(finished):
    study, _, results, _ = finished
    assert len(results) == 6
    for cell in study.cells():
        result = results[cell.key]
        assert result["iterations"] == 2
        assert result["training cases"] == {0.5: 4, 1.0: 8}[cell.training_fraction]
        assert len(result["cases"]) == 2
        assert all(0 <= s["Dice"] <= 1 for case in result["cases"].values() for s in case.values())
        assert 0 <= result["ECE"] <= 1


def test_settings_reach_the_network_of_their_cell_alone(finished):
    study, folder, _, _ = finished
    n_points = {}
    for cell in study.cells():
        (checkpoint,) = (folder / cell.key).rglob("checkpoint_final.pth")
        plans = json.loads((checkpoint.parents[1] / "plans.json").read_text())
        n_points[cell.model.title, cell.training_fraction] = (
            plans["configurations"]["3d_fullres"].get("swipe", {}).get("n_points")
        )
    swipe = f"SwIPETrainer ({PLANS})"
    assert n_points["few points", 0.5] == n_points["few points", 1.0] == 64
    assert n_points[swipe, 0.5] == n_points[swipe, 1.0] != 64


def test_finished_cells_are_not_run_again(finished):
    study, folder, results, measured = finished
    before = len(measured)
    reordered = dataclasses.replace(study, models=MODELS[::-1])
    assert results_of(reordered, folder) == results
    assert len(measured) == before


def test_cells_of_another_plan_are_not_mixed_in(finished):
    study, folder, _, _ = finished
    file = plans_file(ABDOMEN)
    original = file.read_text()

    def change(plans):
        plans["configurations"]["3d_fullres"]["swipe"]["n_points"] += 1

    edit_json(file, change)
    with pytest.raises(DemoError, match=r"another plan of phantom\. Delete"):
        run_study(study, folder, "cpu")
    file.write_text(original)


def test_a_cell_that_fails_leaves_the_others_and_is_tried_again(finished, monkeypatch):
    study, folder, _, measured = finished
    longer = dataclasses.replace(study, iterations=1, training_fractions=(1.0,), models=MODELS[:2])

    def fail(trainer, cell):
        if cell.model.trainer == "SwIPETrainer":
            raise RuntimeError("diverged")
        return train(trainer, cell)

    train = benchmark_accuracy.train
    monkeypatch.setattr(benchmark_accuracy, "train", fail)
    results, (failure,) = run_study(longer, folder, "cpu")
    assert re.search(r"SwIPETrainer.*seed 0, fraction 1: .*diverged", failure)
    tables = report(longer, results)
    assert f"no rows of these models: SwIPETrainer ({PLANS}), seed 0, fraction 1." in tables
    assert [line.split(" | ")[0] for line in tables.splitlines() if line.startswith("| ") and "Model" not in line] == [
        f"| nnUNetTrainer ({PLANS})"
    ] * 2  # means and classes
    monkeypatch.undo()
    before = len(measured)
    assert len(results_of(longer, folder)) == 2
    assert len(measured) == before + 2  # trained and scored


def test_scores_that_fail_leave_the_training(finished, monkeypatch):
    study, folder, _, measured = finished
    other = dataclasses.replace(study, iterations=1, seeds=(1,), training_fractions=(1.0,), models=MODELS[1:2])

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(benchmark_accuracy, "score_cases", fail)
    results, (failure,) = run_study(other, folder, "cpu")
    assert not results
    assert re.search(r"SwIPETrainer.*no memory", failure)
    monkeypatch.undo()
    (checkpoint,) = (folder / next(other.cells()).key).rglob("checkpoint_final.pth")
    trained, before = checkpoint.stat().st_mtime_ns, len(measured)
    (result,) = results_of(other, folder).values()
    assert len(result["cases"]) == 2
    assert checkpoint.stat().st_mtime_ns == trained
    assert len(measured) == before + 1


def test_impossible_settings_are_named_before_anything_is_trained(finished):
    study, folder, _, measured = finished
    impossible = dataclasses.replace(MODELS[2], settings={"patch_size": [3, 3, 3]})
    before = len(measured)
    with pytest.raises(DemoError, match=r"few points.*patch_size"):
        run_study(dataclasses.replace(study, iterations=3, models=(*MODELS, impossible)), folder, "cpu")
    assert len(measured) == before


def test_models_are_scored_on_other_grids_without_training_them_again(finished):
    study, folder, results, measured = finished
    before = len(measured)
    scaled = dataclasses.replace(
        study, models=MODELS[:2], training_fractions=(1.0,), output_scales=(0.5,), input_scales=(0.6,)
    )
    found = results_of(scaled, folder)
    assert len(measured) == before + 2 * 3
    for cell in scaled.cells():
        scores = found[cell.key].pop("scales")
        assert found[cell.key] == {k: v for k, v in results[cell.key].items() if k != "scales"}
        assert set(scores) == {"output 1x", "output 0.5x", "input 0.6x"}
        assert all(set(s["cases"]) == set(found[cell.key]["cases"]) for s in scores.values())
        found[cell.key]["scales"] = scores
        stored = found[cell.key]["cell"]
        assert (stored["model"]["trainer"], stored["seed"]) == (cell.model.trainer, cell.seed)
    tables = report(scaled, found)
    native, *others = re.split(r"^## .*\n", tables, flags=re.MULTILINE)[1:]
    assert re.findall(r"^## (.*)", tables, re.MULTILINE) == ["Output 1x", "Output 0.5x", "Input 0.6x"]

    def rows_of(section, model):
        """Means, the difference to the first model if it is another, classes, the fall."""
        title = f"| {model.title} | "
        return [line.removeprefix(title).split(" | ") for line in section.splitlines() if line.startswith(title)]

    for model in scaled.models:
        means = rows_of(native, model)[0]
        scores = found[scaled.cell(model, 0, 1.0).key]["scales"]
        assert means[-1] == f"{scores['output 1x']['ECE']:.4f} |"
        for scale, section in zip(("output 0.5x", "input 0.6x"), others, strict=True):
            there, *differences, _classes, fall = rows_of(section, model)
            assert there[-1] == f"{scores[scale]['ECE']:.4f} |"
            assert len(differences) == (model is not scaled.models[0])
            for i in (4, 5, 6):  # Dice, NSD, HD95
                digits = 2e-2 if i == 6 else 2e-4
                assert float(there[i]) - float(means[i]) == pytest.approx(float(fall[i - 3].split()[0]), abs=digits)


def test_a_grid_that_fails_leaves_the_others(finished, monkeypatch):
    study, folder, _, _ = finished
    scaled = dataclasses.replace(study, models=MODELS[:2], training_fractions=(0.5,), output_scales=(0.5, 3.0))

    def fail(predictor, cases, scale):
        if scale.factor > 1:
            raise RuntimeError("no memory")
        return score_at_scale(predictor, cases, scale)

    score_at_scale = benchmark_accuracy.score_at_scale
    monkeypatch.setattr(benchmark_accuracy, "score_at_scale", fail)
    results, failures = run_study(scaled, folder, "cpu")
    assert ["no memory" in failure for failure in failures] == [True, True]
    tables = report(scaled, results)
    assert f"SwIPETrainer ({PLANS}), seed 0, fraction 0.5, output 3x" in tables.splitlines()[0]
    sections = re.split(r"^## .*\n", tables, flags=re.MULTILINE)
    assert [section.count(f"| SwIPETrainer ({PLANS})") for section in sections] == [3, 3, 4, 0]


class TestProgress:
    @pytest.fixture
    def shown(self, monkeypatch):
        """A bar of four cells, one of which is done, its clock, and what it shows."""
        clock, lines = [0.0], []
        monkeypatch.setattr(benchmark_accuracy.time, "monotonic", lambda: clock[0])
        progress = benchmark_accuracy.Progress(4, 1)
        monkeypatch.setattr(progress._bar, "refresh", lambda **_: lines.append(str(progress._bar)))
        return progress, clock, lines

    def test_the_time_left_is_that_of_the_mean_cell(self, shown):
        progress, clock, lines = shown
        for seconds in (100, 20):
            progress.begin("cell")
            progress.show()
            clock[0] += seconds
            progress.end()
        progress.begin("last")
        clock[0] += 15
        progress.show()
        assert "1/4 cells" in lines[0]
        assert "left" not in lines[0]
        assert lines[-1].startswith("last: 75%|")
        assert lines[-1].endswith("| 3/4 cells [00:00, 00:45 left]")


class TestLogitsOnGrids:
    @pytest.fixture
    def predicted(self, finished):
        """Factory make(trainer) of a trained cell's predictor, and the image of a case, preprocessed."""
        study, folder, _, _ = finished

        def make(trainer):
            (cell,) = [c for c in study.cells() if c.model in MODELS[:2] and c.model.trainer == trainer][-1:]
            (checkpoint,) = (folder / cell.key).rglob("checkpoint_final.pth")
            predictor = predictor_of(checkpoint.parents[1], torch.device("cpu"), mirroring=True)
            configuration = predictor.configuration_manager
            case = next(iter(results_of(study, folder)[cell.key]["cases"]))
            images = score_model.training_files(predictor)[case]["images"]
            data, _, _ = configuration.preprocessor_class(verbose=False).run_case(
                images, None, predictor.plans_manager, configuration, predictor.dataset_json
            )
            return predictor, data

        return make

    def test_swipe_decodes_the_grid(self, predicted):
        predictor, data = predicted("SwIPETrainer")
        shape = [n // 2 for n in data.shape[1:]]
        found = score_model.grid_logits(predictor, data, shape)
        assert torch.equal(found, predict_logits_on_grid(predictor, torch.from_numpy(data), shape))

    def test_logits_of_others_are_interpolated(self, predicted):
        """At a third of the resolution, the centres are every third voxel."""
        predictor, data = predicted("nnUNetTrainer")
        data = data[:, :12, :30, :30]
        found = score_model.grid_logits(predictor, data, [4, 10, 10])
        native = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).float()
        torch.testing.assert_close(found, native[:, 1::3, 1::3, 1::3])

    @pytest.mark.parametrize("trainer", ["nnUNetTrainer", "SwIPETrainer"])
    def test_resized_images_keep_the_source_frame(self, predicted, trainer):
        predictor, data = predicted(trainer)
        shape = [n // 2 for n in data.shape[1:]]
        found = score_model._resized(predictor, data, shape, [1, 1, 1], [2, 2, 2])
        assert found.shape == (len(data), *shape)
        n_source = 4 if trainer == "SwIPETrainer" else 0
        np.testing.assert_array_equal(found[:n_source], source_channels(shape)[:n_source])
        assert np.corrcoef(found[-1].ravel(), data[-1, 1::2, 1::2, 1::2][tuple(map(slice, shape))].ravel())[0, 1] > 0.5


def test_the_tables_name_models_scores_and_differences(finished):
    study, _, results, _ = finished
    tables = report(study, results)
    rows = [line for line in tables.splitlines() if line.startswith("| few points | 4 |")]
    assert len(rows) == 3  # means, differences, classes
    assert "2 iterations" in tables
    assert sum(line.startswith(f"| nnUNetTrainer ({PLANS}) | 8 |") for line in tables.splitlines()) == 2


def made_up(dice):
    """Results of cases whose Dice is given, {case: {class: Dice}}."""
    cases = {c: {k: {"Dice": d, "NSD": d, "HD95": 1.0} for k, d in v.items()} for c, v in dice.items()}
    return {
        "iterations": 1,
        "seconds": 1.0,
        "parameters": 1,
        "training cases": 1,
        "machine": "m",
        "ECE": 0.1,
        "cases": cases,
        "scales": {},
    }


def test_scores_are_means_over_seeds_then_cases_then_classes():
    study = Study("phantom", MODELS[:2], iterations=1, seeds=(0, 1))
    results = {cell.key: made_up({"a": {"1": 0.5, "2": 0.1}, "b": {"1": 0.7}}) for cell in study.cells()}
    better = {"a": {"1": 0.9, "2": 0.3}, "b": {"1": 0.7}}
    results[study.cell(MODELS[1], 0, 1.0).key] = made_up(better)
    tables = report(study, results)
    row = f"| {MODELS[1].title} | 1 |"
    means, differences, _ = [line for line in tables.splitlines() if line.startswith(row)]
    # class 1: a 0.7, b 0.7; class 2: a 0.2
    assert "| 0.4500 | 0.4500 | 1.00 | 0.1000 |" in means
    # case a: +0.2 and +0.1, b: 0
    assert differences.startswith(f"{row} +0.0750 (")
    assert differences.endswith("| +0.0000 |")


class TestTraining:
    @pytest.fixture
    def rates(self, phantom, monkeypatch):
        """Trains a cell; the learning rates of its steps, as fractions of the highest, and the first batch."""

        def run(model, budget, unit="iterations", seed=0):
            seen, batches = [], []

            def step(trainer, batch):
                trainer.lr_scheduler.step(0.123)  # SwIPETrainer steps it by itself
                seen.append(trainer.optimizer.param_groups[0]["lr"] / trainer.initial_lr)
                batches.append((len(batch["data"]), batch["data"].float().sum().item()))

            cell = Cell("phantom", model, budget, unit, fold=0, seed=seed, training_fraction=1.0)
            trainer_class = SwIPETrainer if model.trainer == "SwIPETrainer" else nnUNetTrainer
            monkeypatch.setattr(trainer_class, "train_step", step)
            monkeypatch.setenv("nnUNet_results", str(phantom[0] / "rates"))
            return train_cell(cell, "cpu"), seen, batches

        return run

    def test_nnunets_rate_decays_over_the_iterations(self, rates):
        _, seen, _ = rates(MODELS[0], 4)
        assert seen == pytest.approx([(1 - i / 4) ** 0.9 for i in range(4)])

    def test_swipes_rate_decays_over_the_iterations(self, rates):
        _, seen, _ = rates(MODELS[1], 40)
        peak = int(np.argmax(seen))
        assert peak == 2  # a twentieth of the iterations warms up
        assert np.all(np.diff(seen[peak:]) < 0)
        assert seen[-1] < 0.01

    def test_a_budget_in_seconds_ends_training_and_schedule(self, rates, monkeypatch):
        """Of a clock by which every step takes an eighth of a second."""
        eighths = itertools.count()
        clock = SimpleNamespace(perf_counter=lambda: next(eighths) / 8)
        monkeypatch.setattr(benchmark_accuracy, "time", clock)
        for model in MODELS[:2]:
            result, seen, _ = rates(model, 2, "seconds")
            assert result["seconds"] == 2
            assert result["iterations"] == len(seen) == 16
            assert max(seen) > 0.9
            assert seen[-1] < 0.1

    def test_the_batch_size_reaches_the_loader(self, rates):
        planned, changed = (
            rates(model, 1)[2][0][0] for model in (MODELS[1], dataclasses.replace(MODELS[1], batch_size=5))
        )
        assert planned != changed == 5

    def test_seeds_draw_different_batches(self, rates):
        for model in MODELS[:2]:
            first, again, other = (rates(model, 1, seed=seed)[2] for seed in (0, 0, 1))
            assert first == again != other
