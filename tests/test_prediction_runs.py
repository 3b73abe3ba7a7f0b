"""Runs of many cases: one that fails does not keep the others from being done, and nothing is lost or replaced."""

import errno
import logging
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_helpers import call_command, read_labels
from tiny_models import fail_by_name, tiny_predictor, write_image

from nnunetv2_swipe.commands import mesh, predict
from nnunetv2_swipe.inference import case_files
from nnunetv2_swipe.inference import predictor as predictor_module
from nnunetv2_swipe.inference.encoded_image import EncodedImage
from nnunetv2_swipe.inference.failures import CasesFailed
from nnunetv2_swipe.inference.predictor import SwIPEPredictor

CASES = ("bad", "empty", "good", "index", "last")
"""Those that `FailingPreprocessor` fails for, and others."""


@pytest.fixture
def make(tiny_config, tiny_network):
    """Factory of predictors of a tiny network."""

    def build(dims=3, **options):
        return tiny_predictor(tiny_config(dims), tiny_network, **options)

    return build


@pytest.fixture
def images(tmp_path):
    """A folder of small volumes."""
    for number, case in enumerate(CASES):
        write_image(tmp_path / "images" / f"{case}_0000.nii.gz", seed=number)
    return tmp_path / "images"


def names(folder):
    return sorted(f.name for f in folder.iterdir() if f.suffix != ".json")


@pytest.mark.parametrize("processes", [0, 2])
def test_cases_that_fail_are_named_at_the_end_and_the_others_are_done(
    make, images, tmp_path, monkeypatch, caplog, processes
):
    predictor = fail_by_name(make(), monkeypatch)
    with pytest.raises(CasesFailed) as error:
        predictor.predict_from_files(str(images), str(tmp_path / "out"), num_processes_preprocessing=processes)
    first, *lines = str(error.value).splitlines()
    assert first == "3 of 5 cases failed, the others are done:"
    assert lines == [
        f"{images}/bad_0000.nii.gz: holds a NaN",  # the error names the file itself
        f"{images}/empty_0000.nii.gz: RuntimeError",
        f"{images}/index_0000.nii.gz: IndexError: list index out of range",
    ]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        f"Failed, going on with the next case: {line}" for line in lines
    ]
    assert names(tmp_path / "out") == ["good.nii.gz", "last.nii.gz"]


def test_what_is_returned_is_in_the_error(make, images, monkeypatch):
    files = [[str(images / f"{case}_0000.nii.gz")] for case in CASES]
    expected = make().predict_from_files_sequential([files[2]], None)[0]
    with pytest.raises(CasesFailed) as error:
        fail_by_name(make(), monkeypatch).predict_from_files_sequential(files, None)
    found = error.value.results
    assert [labels is None for labels in found] == [True, True, False, True, False]
    np.testing.assert_array_equal(found[2], expected)
    assert list(error.value.reasons) == [files[i][0] for i in (0, 1, 3)]


def failing(function, name, error):
    """A function that fails for the case of a name."""

    def replaced(self, *arguments, **options):
        if name in str([self, *arguments]) or (getattr(self, "output", None) is not None and self.output.name == name):
            raise error
        return function(self, *arguments, **options)

    return replaced


@pytest.mark.parametrize("processes", [0, 2])
def test_errors_of_decoding_and_of_writing_are_those_of_one_case(make, images, tmp_path, monkeypatch, processes):
    write = failing(case_files.CaseFiles.write_labels, "bad", OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(case_files.CaseFiles, "write_labels", write)
    decode = failing(SwIPEPredictor._predict_case, "empty_0000", RuntimeError("CUDA out of memory"))
    monkeypatch.setattr(SwIPEPredictor, "_predict_case", decode)
    with pytest.raises(CasesFailed) as error:
        make().predict_from_files(
            str(images),
            str(tmp_path / "out"),
            num_processes_preprocessing=0,
            num_processes_segmentation_export=processes,
        )
    assert {file.rpartition("/")[2]: reason for file, reason in error.value.reasons.items()} == {
        "bad_0000.nii.gz": "[Errno 5] Input/output error",
        "empty_0000.nii.gz": "CUDA out of memory",
    }
    assert names(tmp_path / "out") == ["good.nii.gz", "index.nii.gz", "last.nii.gz"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_an_interruption_end_the_run(make, images, tmp_path, monkeypatch, error):
    """The next cases would be predicted for nothing."""
    begun = []
    predict_case = SwIPEPredictor._predict_case

    def watched(self, case, **options):
        begun.append(case["ofile"])
        if isinstance(error, KeyboardInterrupt) and len(begun) == 2:
            raise error
        return predict_case(self, case, **options)

    monkeypatch.setattr(SwIPEPredictor, "_predict_case", watched)
    if isinstance(error, OSError):
        monkeypatch.setattr(case_files, "_write_nifti", failing(case_files._write_nifti, "", error))
    message = r"out/bad.nii.gz cannot be written: No space left" if isinstance(error, OSError) else None
    with pytest.raises(type(error), match=message):
        make().predict_from_files_sequential(str(images), str(tmp_path / "out"))
    assert 1 <= len(begun) <= 2
    assert names(tmp_path / "out") == ([] if isinstance(error, OSError) else ["bad.nii.gz"])


def test_a_killed_worker_ends_the_run_with_a_remedy(make, images, tmp_path, monkeypatch):
    shutil.copy(images / "good_0000.nii.gz", images / "killed_0000.nii.gz")
    predictor = fail_by_name(make(), monkeypatch)
    with pytest.raises(RuntimeError, match=r"was killed, .* -npp 0"):
        predictor.predict_from_files(str(images), str(tmp_path / "out"), num_processes_preprocessing=1)
    assert "good.nii.gz" in names(tmp_path / "out")


def command(module, make_predictor, *arguments, monkeypatch, name):
    """Run a command of ours with a predictor in the place of a trained model's."""
    monkeypatch.setattr(module, "make_predictor", lambda _: make_predictor())
    call_command(name, *arguments, "-d", 1, "-c", "any", "-device", "cpu", function=module.main)


def test_the_command_ends_with_the_failed_files_and_an_exit_code(make, images, tmp_path, monkeypatch, capsys):
    arguments = ("-i", images, "-o", tmp_path / "out", "-npp", 0)
    with pytest.raises(SystemExit, match="1"):
        command(
            predict,
            lambda: fail_by_name(make(), monkeypatch),
            *arguments,
            monkeypatch=monkeypatch,
            name="nnUNetv2_swipe_predict",
        )
    last = capsys.readouterr().err.splitlines()[-4:]
    assert last[0] == "nnUNetv2_swipe_predict: 3 of 5 cases failed, the others are done:"
    assert [re.search(r"\w+_0000.nii.gz", line)[0] for line in last[1:]] == [
        "bad_0000.nii.gz",
        "empty_0000.nii.gz",
        "index_0000.nii.gz",
    ]


def test_surfaces_of_the_other_cases_are_written(make, images, tmp_path, monkeypatch, capsys):
    def predictor():
        return fail_by_name(make(), monkeypatch)

    arguments = ("-i", images, "-o", tmp_path / "out", "--disable_progress_bar")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="1"):
        command(mesh, predictor, *arguments, monkeypatch=monkeypatch, name="nnUNetv2_swipe_mesh")
    error = capsys.readouterr().err
    assert "nnUNetv2_swipe_mesh: 3 of 5 cases failed" in error
    assert f"{images}/empty_0000.nii.gz: RuntimeError" in error.splitlines()
    written = [file.name for file in (tmp_path / "out").rglob("*.stl")] + [
        f.parent.name for f in tmp_path.rglob("*.stl")
    ]
    assert any("good" in name for name in written)
    assert any("last" in name for name in written)


def test_an_image_of_one_slice_is_refused_before_the_first_surface(make, images, tmp_path, monkeypatch, capsys):
    write_image(images / "slice_0000.nii.gz", (1, 9, 9))
    monkeypatch.setattr(EncodedImage, "__init__", lambda *_, **__: pytest.fail("a case was begun"))
    arguments = ("-i", images, "-o", tmp_path / "out")
    with pytest.raises(SystemExit, match="1"):
        command(mesh, make, *arguments, monkeypatch=monkeypatch, name="nnUNetv2_swipe_mesh")
    assert "slice_0000.nii.gz is of one slice" in capsys.readouterr().err


def test_files_that_are_cut_off_are_predicted_again(make, images, tmp_path):
    output = tmp_path / "out"
    run = make(uncertainties=["uncertainty"])
    run.predict_from_files_sequential(str(images), str(output), save_probabilities=True)
    damaged = ["bad.nii.gz", "empty.npz", "good.pkl", "uncertainty/index.nii.gz"]
    for file, n in zip(damaged, (0, 100, 10, 200), strict=True):
        (output / file).write_bytes((output / file).read_bytes()[:n])
    before = {file: file.stat().st_mtime_ns for file in output.glob("*.nii.gz")}
    run.predict_from_files_sequential(str(images), str(output), save_probabilities=True, overwrite=False)
    again = {file.name for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert again == {"bad.nii.gz", "empty.nii.gz", "good.nii.gz", "index.nii.gz"}
    assert run.predict_from_files_sequential(str(images), str(output), True, overwrite=False) is None


@pytest.mark.parametrize("case", ["UPPER.nii", "UPPER", "a.b", ".hidden", "a b", "a_0000"])
def test_a_case_of_any_name_is_predicted_once(make, tmp_path, case):
    for name in ("UPPER.nii", case):
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz")
    predictor, output = make(), tmp_path / "out"
    predictor.predict_from_files_sequential(str(tmp_path / "images"), str(output))
    assert names(output) == sorted({"UPPER.nii.nii.gz", f"{case}.nii.gz"})
    assert predictor.predict_from_files_sequential(str(tmp_path / "images"), str(output), overwrite=False) is None


def never(*_, **__):
    pytest.fail("work was begun")


@pytest.mark.parametrize("place", ["images", "previous"])
def test_label_maps_are_not_written_among_the_input(make, images, tmp_path, monkeypatch, place):
    monkeypatch.setattr(SwIPEPredictor, "_check_case", never)
    shutil.copytree(images, tmp_path / "previous")
    with pytest.raises(ValueError, match=rf"{place} is also that of the images or of the previous"):
        make().predict_from_files_sequential(
            str(images), str(tmp_path / place), folder_with_segs_from_prev_stage=str(tmp_path / "previous")
        )
    assert names(images) == [f"{case}_0000.nii.gz" for case in CASES]
    assert not list(images.glob("*.json"))


def test_label_maps_of_a_previous_stage_are_refused_where_there_is_none(make, images, tmp_path, monkeypatch):
    monkeypatch.setattr(SwIPEPredictor, "_check_case", never)
    with pytest.raises(ValueError, match=r"no second stage of a cascade, so it cannot use elsewhere"):
        make().predict_from_files_sequential(
            str(images), str(tmp_path / "out"), folder_with_segs_from_prev_stage="elsewhere"
        )


def test_a_file_without_the_number_of_a_channel_is_named_before_work(make, images, tmp_path, monkeypatch):
    monkeypatch.setattr(SwIPEPredictor, "_check_case", never)
    shutil.copy(images / "good_0000.nii.gz", images / "good.nii.gz")
    with pytest.raises(ValueError, match=r"holds good.nii.gz, without the number of a channel"):
        make().predict_from_files_sequential(str(images), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_equal_names_of_two_folders_are_refused_in_every_part_of_the_cases(make, images, tmp_path, monkeypatch):
    monkeypatch.setattr(SwIPEPredictor, "_check_case", never)
    shutil.copytree(images, tmp_path / "others")
    lists = [[str(tmp_path / folder / "good_0000.nii.gz")] for folder in ("images", "others")]
    with pytest.raises(
        ValueError, match=r"images/good_0000.nii.gz and .*others/good_0000.nii.gz would both be written"
    ):
        make().predict_from_files(lists, str(tmp_path / "out"), num_parts=2, part_id=1)
    assert not (tmp_path / "out").exists()


def test_missing_folders_of_outputs_are_made(make, images, tmp_path):
    lists = [[str(images / f"{case}_0000.nii.gz")] for case in ("good", "last")]
    outputs = [str(tmp_path / "a" / "b" / "good"), str(tmp_path / "c" / "d" / "last")]
    make().predict_from_files(lists, outputs, num_processes_preprocessing=0, num_parts=2, part_id=1)
    assert names(tmp_path / "c" / "d") == ["last.nii.gz"]
    image = sitk.ReadImage(lists[0][0])
    properties = {
        "spacing": [1.0, 1.0, 1.0],
        "sitk_stuff": {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()},
    }
    array = sitk.GetArrayFromImage(image)[None]
    make().predict_single_npy_array(array, properties, output_file_truncated=str(tmp_path / "e" / "f" / "good"))
    expected = make().encode(lists[0]).labels()
    np.testing.assert_array_equal(read_labels(tmp_path / "e" / "f" / "good.nii.gz"), expected)


def test_a_relative_output_needs_no_folder(make, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make().predict_from_files([[str(images / "good_0000.nii.gz")]], ["good"], num_processes_preprocessing=0)
    assert (tmp_path / "good.nii.gz").is_file()


@pytest.mark.parametrize(
    ("asked", "used"), [((0, 0), ["0"]), ((0, "0", 1), ["0", "1"]), (("all",), ["all"]), ("all", ["all"]), (0, ["0"])]
)
def test_a_fold_that_is_named_twice_counts_once(monkeypatch, make, asked, used):
    found = []

    def read_model(folder, folds, *_, **__):
        found.append(folds)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(predictor_module, "read_model", read_model)
    with pytest.raises(FileNotFoundError, match="model"):
        make().initialize_from_trained_model_folder("model", asked)
    assert found == [used]


SIZES_2D = [
    ((1, 1), (1, 1)),
    ((1, 40), (1, 1)),
    ((40, 1), (1, 1)),
    ((3, 5), (1, 1)),
    ((3, 20), (0.1, 1)),
    ((1, 1), (0.1, 0.1)),
    ((2, 3, 21), (0.1, 0.1, 1)),
]
SIZES_3D = [
    ((1, 20, 20), (1, 1, 1)),
    ((1, 1, 1), (0.1, 0.1, 0.1)),
    ((4, 20, 20), (0.1, 1, 1)),
    ((20, 20, 1), (3, 1, 0.2)),
    ((20, 20, 20), (3, 0.01, 1)),
]


@pytest.mark.parametrize(("shape", "spacing"), SIZES_2D + SIZES_3D, ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_images_thinner_than_a_voxel_of_the_plan_and_smaller_than_a_patch_are_predicted(
    make, tmp_path, dims, shape, spacing
):
    if len(shape) < dims:
        pytest.skip("volumes only")
    predictor = make(dims, spacing=(3.0, 1.0, 1.0)[-dims:])
    file = write_image(tmp_path / "images" / "a_0000.nii.gz", shape, spacing)
    predictor.predict_from_files_sequential(str(file.parent), str(tmp_path / "out"), save_probabilities=True)
    image, labels = (sitk.ReadImage(str(f)) for f in (file, tmp_path / "out" / "a.nii.gz"))
    assert labels.GetSize() == image.GetSize()
    assert labels.GetSpacing() == pytest.approx(image.GetSpacing())
    probabilities = np.load(tmp_path / "out" / "a.npz")["probabilities"]
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-3)
    np.testing.assert_array_equal(probabilities.argmax(0).squeeze(), sitk.GetArrayFromImage(labels).squeeze())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_thin_slice_in_an_empty_volume_is_labelled_where_it_is(make, tmp_path, axis):
    """nnU-Net crops to it, so that nothing would be left of it in the plan's spacing."""
    file = write_image(tmp_path / "a_0000.nii.gz", (12, 12, 12))
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    inside = np.zeros(array.shape, dtype=bool)
    inside[(slice(None),) * axis + (7,)] = True
    changed = sitk.GetImageFromArray(np.where(inside, array, 0))
    sitk.WriteImage(changed, str(file))
    predictor = make(spacing=(3.0, 3.0, 3.0))
    labels = predictor.encode(file).labels()
    assert labels[inside].any()
    assert not labels[~inside].any()
