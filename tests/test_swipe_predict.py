"""`nnUNetv2_swipe_predict`, in this process and with narrow networks, beside `nnUNetv2_predict`."""

import errno
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pyvista
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunet_helpers import (
    ABDOMEN,
    FOLDERS,
    FUNDUS,
    MODEL,
    ON_CPU,
    REGIONS,
    call_command,
    geometry,
    model_folder,
    nnunet_folders,
    read_labels,
    start,
)
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from PIL import Image
from scipy import ndimage

from benchmark_grid import measure_grid, report
from nnunetv2_swipe.commands.mesh import main as mesh_main
from nnunetv2_swipe.commands.predict import main
from nnunetv2_swipe.commands.report import main as report_main
from nnunetv2_swipe.inference import case_files
from nnunetv2_swipe.inference.encoded_image import EncodedImage
from nnunetv2_swipe.inference.output_grid import OutputGrid
from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.inference.uncertainties import UNCERTAINTIES

OURS = ("--disable_tta", "--disable_progress_bar", "-npp", 0, "-nps", 1)
STOCK = ("--disable_tta", "--disable_progress_bar", "-npp", 1, "-nps", 1)


@pytest.fixture(scope="module")
def root(trained_models):
    """Two folds of 3d_fullres, one of 2d on photographs and one with regions."""
    with nnunet_folders(trained_models) as root:
        yield root


def images_of(root, name):
    return root / "nnUNet_raw" / name / "imagesTs"


def image_of(root, name):
    (file,) = images_of(root, name).glob("*_0000.*")
    return file


def swipe_predict(root, output, *arguments, name=ABDOMEN, configuration="3d_fullres", folds=(0,), source=None):
    """Label files in order."""
    fixed = ("-i", source or images_of(root, name), "-o", output, "-d", name, "-c", configuration, *MODEL, *ON_CPU)
    call_command("nnUNetv2_swipe_predict", *fixed, "-f", *folds, *OURS, *arguments, function=main)
    return sorted(output.glob("*.nii.gz")) + sorted(output.glob("*.png"))


def stock_predict(root, output, *arguments, name=ABDOMEN, configuration="3d_fullres", folds=(0,)):
    fixed = ("-i", images_of(root, name), "-o", output, "-d", name, "-c", configuration, *MODEL, *ON_CPU)
    call_command("nnUNetv2_predict", *fixed, "-f", *folds, *STOCK, *arguments)
    return sorted(output.glob("*.nii.gz")) + sorted(output.glob("*.png"))


@pytest.mark.parametrize("name", [ABDOMEN, REGIONS])
def test_on_the_images_grid_it_agrees_with_nnunet(root, tmp_path, name):
    (ours,) = swipe_predict(root, tmp_path / "ours", name=name)
    (stock,) = stock_predict(root, tmp_path / "stock", name=name)
    assert ours.name == stock.name
    np.testing.assert_allclose(geometry(ours), geometry(stock), rtol=1e-5, atol=1e-4)
    assert np.mean(read_labels(ours) == read_labels(stock)) > 0.9
    for file in ("plans.json", "dataset.json"):  # what postprocessing asks for
        assert (tmp_path / "ours" / file).is_file()


def test_folds_and_mirroring_are_averaged(root, tmp_path, monkeypatch):
    """Probabilities, which follow the labels, are those of nnU-Net to a few percent."""
    for options in ("OURS", "STOCK"):
        monkeypatch.setattr(f"{__name__}.{options}", globals()[options][1:])  # with mirroring
    arguments = ("--save_probabilities",)
    (ours,) = swipe_predict(root, tmp_path / "ours", *arguments, folds=(0, 1))
    (stock,) = stock_predict(root, tmp_path / "stock", *arguments, folds=(0, 1))
    found, expected = (np.load(str(f).replace(".nii.gz", ".npz"))["probabilities"] for f in (ours, stock))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.05
    np.testing.assert_array_equal(found.argmax(0), read_labels(ours))
    (one,) = swipe_predict(root, tmp_path / "one", *arguments)
    assert np.abs(found - np.load(str(one).replace(".nii.gz", ".npz"))["probabilities"]).max() > 0.01


def test_probabilities_are_ensembled_by_nnunet(root, tmp_path):
    members = [tmp_path / "ours", tmp_path / "stock"]
    swipe_predict(root, members[0], "--save_probabilities")
    stock_predict(root, members[1], "--save_probabilities")
    call_command("nnUNetv2_ensemble", "-i", *members, "-o", tmp_path / "both", "-np", 1)
    (labels,) = (tmp_path / "both").glob("*.nii.gz")
    np.testing.assert_allclose(geometry(labels), geometry(image_of(root, ABDOMEN)), rtol=1e-5, atol=1e-4)


def test_another_spacing(root, tmp_path):
    (labels,) = swipe_predict(root, tmp_path, "--spacing", 2.0, 2.5, 3.5)
    found, image = sitk.ReadImage(str(labels)), sitk.ReadImage(str(image_of(root, ABDOMEN)))
    assert found.GetSpacing() == pytest.approx((2.0, 2.5, 3.5))
    assert found.GetDirection() == image.GetDirection()
    extents = [np.array(i.GetSize()) * i.GetSpacing() for i in (found, image)]
    assert (np.abs(extents[0] - extents[1]) <= np.array((2.0, 2.5, 3.5)) / 2 + 1e-4).all()


def test_another_size_holds_the_same_labels(root, tmp_path):
    (native,) = swipe_predict(root, tmp_path / "native")
    z, y, x = read_labels(native).shape
    (fine,) = swipe_predict(root, tmp_path / "fine", "--size", 3 * x, 3 * y, 3 * z)
    assert np.mean(read_labels(fine)[1::3, 1::3, 1::3] == read_labels(native)) > 0.99


def test_the_grid_of_another_image(root, tmp_path):
    like = sitk.ReadImage(str(image_of(root, ABDOMEN)))[3:20, 4:18, 2:9]
    file = tmp_path / "like.nii.gz"
    sitk.WriteImage(like, str(file))
    (labels,) = swipe_predict(root, tmp_path / "out", "--like", file)
    (native,) = swipe_predict(root, tmp_path / "native")
    np.testing.assert_allclose(geometry(labels), geometry(file), rtol=1e-5, atol=1e-4)
    assert np.mean(read_labels(labels) == read_labels(native)[2:9, 4:18, 3:20]) > 0.99


def test_photographs(root, tmp_path):
    arguments = {"name": FUNDUS, "configuration": "2d"}
    (ours,) = swipe_predict(root, tmp_path / "ours", **arguments)
    (stock,) = stock_predict(root, tmp_path / "stock", **arguments)
    ours, stock = (np.array(Image.open(file)) for file in (ours, stock))
    assert np.mean(ours == stock) > 0.98
    (wide,) = swipe_predict(root, tmp_path / "wide", "--size", 100, 50, **arguments)
    assert Image.open(wide).size == (100, 50)


def test_what_is_there_is_kept_and_what_was_cut_off_is_made_again(root, tmp_path):
    source = root / "nnUNet_raw" / ABDOMEN / "imagesTr"
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted(source.iterdir())[:2]:
        shutil.copy(file, images)
    output = tmp_path / "out"
    first, second = swipe_predict(root, output, source=images)
    shutil.copy(second, first)  # whole, but not what would be predicted
    expected = kept = second.read_bytes()
    second.unlink()
    cut_off = output / f".unfinished_{second.name.removesuffix('.nii.gz')}"
    cut_off.mkdir()
    (cut_off / second.name).write_text("half a file")
    (output / f".unfinished_{first.name.removesuffix('.nii.gz')}").mkdir()  # all files of it had been moved
    assert swipe_predict(root, output, "--continue_prediction", source=images) == [first, second]
    assert first.read_bytes() == kept
    assert second.read_bytes() == expected
    assert not list(output.glob(".unfinished*"))
    for file in (first, second):
        case = file.name.removesuffix(".nii.gz")
        np.savez(output / f"{case}.npz", kept=1)
        save_pickle({}, str(output / f"{case}.pkl"))
    (output / "uncertainty").mkdir()
    shutil.copy(second, output / "uncertainty")
    arguments = ("--continue_prediction", "--save_probabilities", "--save_uncertainty")
    swipe_predict(root, output, *arguments, source=images)
    assert first.read_bytes() != kept  # a map of it was missing
    assert list(np.load(output / f"{second.name.removesuffix('.nii.gz')}.npz")) == ["kept"]


def test_a_killed_run_leaves_whole_files_and_goes_on(root, tmp_path):
    source, output = root / "nnUNet_raw" / ABDOMEN / "imagesTr", tmp_path / "out"
    code = (
        "from nnunetv2_swipe import autoload; autoload.install(); import nnunetv2_swipe.commands.predict as p; p.main()"
    )
    arguments = ("-i", source, "-o", output, "-d", ABDOMEN, "-c", "3d_fullres", "-f", 0, *MODEL, *ON_CPU, *OURS)
    folders = {name: str(root / name) for name in FOLDERS}
    process = start([sys.executable, "-c", code, *map(str, arguments)], folders | {"SWIPE_AMP": "off"})
    while not list(output.glob("*.nii.gz")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {file: read_labels(file) for file in output.glob("*.nii.gz")}  # all can be read
    written = {file: file.stat().st_mtime_ns for file in before}
    files = swipe_predict(root, output, "--continue_prediction", source=source)
    assert len(files) == len(list(source.iterdir())) > len(before)
    assert {file: file.stat().st_mtime_ns for file in before} == written
    assert not list(output.glob(".unfinished*"))


def test_postprocessing(root, tmp_path):
    """nnU-Net's command takes our label maps."""
    (labels,) = swipe_predict(root, tmp_path / "in")
    before = read_labels(labels)
    scattered = next(
        int(n) for n in np.unique(before) if n > 0 and ndimage.label(before == n, np.ones((3, 3, 3)))[1] > 1
    )
    steps = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": scattered}])
    save_pickle(steps, str(tmp_path / "steps.pkl"))
    files = ("-pp_pkl_file", tmp_path / "steps.pkl", "-np", 1)
    call_command("nnUNetv2_apply_postprocessing", "-i", tmp_path / "in", "-o", tmp_path / "out", *files)
    (processed,) = (tmp_path / "out").glob("*.nii.gz")
    after = read_labels(processed)
    assert 0 < (after == scattered).sum() < (before == scattered).sum()
    np.testing.assert_array_equal(after[before != scattered], before[before != scattered])


def test_what_is_outside_the_images_is_warned_of_once(root, tmp_path):
    image = sitk.ReadImage(str(image_of(root, ABDOMEN)))
    image.SetOrigin((1e4, 0.0, 0.0))
    sitk.WriteImage(image, str(tmp_path / "elsewhere.nii.gz"))
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((root / "nnUNet_raw" / ABDOMEN / "imagesTr").iterdir())[:2]:
        shutil.copy(file, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        files = swipe_predict(root, tmp_path / "out", "--like", tmp_path / "elsewhere.nii.gz", source=images)
    assert sum("beyond the image" in str(warning.message) for warning in caught) == 1
    assert not any(read_labels(file).any() for file in files)


def test_a_file_that_cannot_be_written_never_appears(root, tmp_path, monkeypatch, capsys):
    def fail(_, file):
        file.write_text("half")
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(case_files.nibabel, "save", fail)
    with pytest.raises(SystemExit, match="1"):
        swipe_predict(root, tmp_path)
    assert re.search(r"\.nii\.gz cannot be written: the disk is full$", capsys.readouterr().err.strip())
    assert {f.suffix for f in tmp_path.iterdir()} == {".json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--spacing", 0, 1, 1), "above 0"),
        (("--spacing", "inf", 1, 1), "above 0"),
        (("--spacing", "nan", 1, 1), "above 0"),
        (("--spacing", "1e-300", 1, 1), "points along an axis"),
        (("--size", 0, 4, 4), "above 0"),
        (("--size", 10**400, 4, 4), "above 0, at most 1,000,000"),
        (("--size", 10000, 10000, 1000, "--save_probabilities"), "GB of memory|GB left"),
        (("--like", "oblique.nii.gz", "--save_uncertainty"), "oblique to .*_0000.nii.gz"),
        (("-o", "file/below"), "file/below"),
        (("-npp", -1), "-npp is -1"),
        (("--size", 4, 4), "a volume takes three"),
        (("--size", 100000, 100000, 100000), "GB"),
        (("--like", "nowhere.nii.gz"), "nowhere.nii.gz does not exist"),
        (("-f", 3), "fold.*3.*trained: 0 1"),
        (("-c", "3d_lowres"), "no model in"),
        (("-d", "Dataset999_None"), "Dataset999_None"),
        (("-i", "nowhere"), "nowhere does not exist"),
        (("-part_id", 2, "-num_parts", 2), "part_id"),
        (("-device", "cuda"), "-device cpu"),
        (("--save_uncertainty", "folds"), "several folds"),
        (("--save_uncertainty", "folds", "-f", 0, 0), "several folds"),
        (("--save_uncertainty", "mirroring"), "--disable_tta"),
        (("-step_size", 2), "step_size is 2"),
        (("-step_size", "nan"), "step_size is nan"),
        (("-num_parts", 0), "num_parts 0"),
        (("-tr", "nnUNetTrainer"), "nnUNetTrainer is no SwIPE trainer"),
        (("-tr", "SwIPETrainer_none"), "no trainer SwIPETrainer_none"),
    ],
    ids=str,
)
def test_bad_input_is_named_before_the_first_case(root, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    image = sitk.ReadImage(str(image_of(root, ABDOMEN)))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, "oblique.nii.gz")
    if "cuda" in arguments:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(EncodedImage, "__init__", lambda *_, **__: pytest.fail("a case was begun"))
    with pytest.raises(SystemExit, match="1"):
        swipe_predict(root, tmp_path, *arguments)
    error = capsys.readouterr().err
    assert error.startswith("nnUNetv2_swipe_predict: ")
    assert re.search(message, error)


def test_a_missing_file_of_a_channel_is_named_before_the_first_case(root, monkeypatch):
    """Of a model of two channels."""
    monkeypatch.setattr(EncodedImage, "__init__", lambda *_, **__: pytest.fail("a case was begun"))
    predictor = predictor_of(root, ABDOMEN)
    predictor.dataset_json = predictor.dataset_json | {"channel_names": {"0": "CT", "1": "PET"}}
    with pytest.raises(ValueError, match=r"found 1 of the 2 channels \(CT, PET\). Is the file"):
        predictor.cases(str(images_of(root, ABDOMEN)))


def test_a_missing_channel_is_named(root, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(images_of(root, FUNDUS), images)
    (file,) = images.glob("*_0000.png")
    Image.open(file).convert("L").save(file)
    with pytest.raises(SystemExit, match="1"):
        swipe_predict(root, tmp_path / "out", name=FUNDUS, configuration="2d", source=images)
    assert re.search(r"fundus_.*_0000.png: found 1 of the 3 channels", capsys.readouterr().err)


def test_a_large_label_map_is_decoded_on_the_disk(root, tmp_path, monkeypatch):
    """And written with the same labels and geometry."""
    (small,) = swipe_predict(root, tmp_path / "small", "--spacing", 2, 3, 4)
    monkeypatch.setattr(case_files, "LARGE", 0)
    (large,) = swipe_predict(root, tmp_path / "large", "--spacing", 2, 3, 4)
    np.testing.assert_array_equal(read_labels(large), read_labels(small))
    np.testing.assert_allclose(geometry(large), geometry(small), rtol=1e-5, atol=1e-4)
    assert sitk.ReadImage(str(large)).GetPixelID() == sitk.sitkUInt8
    assert {f.name for f in large.parent.iterdir()} == {f.name for f in small.parent.iterdir()}


def test_probabilities_that_fill_the_memory_wait_for_all_writers(monkeypatch):
    """Not only for the first of them that is done."""
    predictor, writing, found = SwIPEPredictor(device=torch.device("cpu")), [], []
    monkeypatch.setattr(predictor, "_several_fit", lambda properties, _: properties["small"])

    def write(small):
        writing.append(small)
        time.sleep(0 if small else 0.5)
        writing.remove(small)

    def predict(case, **_):
        small = case["data_properties"]["small"]
        if not small:
            found.append(len(writing))
        return partial(write, small)

    monkeypatch.setattr(predictor, "_predict_case", predict)
    cases = [{"data": None, "data_properties": {"small": s}, "ofile": None} for s in (False, True, False)]
    predictor.predict_from_data_iterator(cases, True, 3)
    assert found == [0, 0]


def test_probabilities_of_one_case_at_a_time_are_in_memory_unless_several_fit(root, tmp_path, monkeypatch):
    """However many threads write: of large images of many classes they take most of it."""
    writing, found, second = [], [], threading.Event()
    write, predict = SwIPEPredictor._write, SwIPEPredictor._predict_case

    def slowly(self, *arguments):
        writing.append(1)
        second.wait(timeout=wait)
        write(self, *arguments)
        writing.pop()

    def watched(self, *arguments, **options):
        found.append(len(writing))
        if len(found) > 1:
            second.set()
        return predict(self, *arguments, **options)

    monkeypatch.setattr(SwIPEPredictor, "_write", slowly)
    monkeypatch.setattr(SwIPEPredictor, "_predict_case", watched)
    source = root / "nnUNet_raw" / ABDOMEN / "imagesTr"
    wait = 120
    swipe_predict(root, tmp_path / "many", "--save_probabilities", "-nps", 3, source=source)
    assert max(found) > 0
    found.clear()
    second.clear()
    monkeypatch.setattr(second, "set", lambda: None)  # every file takes its time
    wait = 0.3
    monkeypatch.setattr("nnunetv2_swipe.inference.case_predictor.spare_memory", lambda: 1)
    swipe_predict(root, tmp_path / "one", "--save_probabilities", "-nps", 3, source=source)
    assert found == [0] * len(list(source.iterdir()))


def test_a_damaged_image_is_named_before_the_first_case(root, tmp_path, capsys, monkeypatch):
    images = tmp_path / "images"
    shutil.copytree(root / "nnUNet_raw" / ABDOMEN / "imagesTr", images)
    last = max(images.iterdir())
    last.write_bytes(last.read_bytes()[:10])
    monkeypatch.setattr(EncodedImage, "__init__", lambda *_, **__: pytest.fail("a case was begun"))
    with pytest.raises(SystemExit, match="1"):
        swipe_predict(root, tmp_path / "out", source=images)
    assert f"{last} cannot be read as an image" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["patch"], "patches"])
def test_maps_of_uncertainty_that_there_are_not_are_named(names):
    with pytest.raises(ValueError, match=r"no map of uncertainty '(patch|p)'; there are label, patches, .*"):
        SwIPEPredictor(uncertainties=names)


def test_uncertainty_lies_beside_the_labels(root, tmp_path):
    (labels,) = swipe_predict(root, tmp_path / "all", "--save_uncertainty", folds=(0, 1))
    whole = tmp_path / "all" / "uncertainty" / labels.name
    np.testing.assert_allclose(geometry(whole), geometry(labels), rtol=1e-5, atol=1e-4)
    parts = []
    sources = ("label", "patches", "folds")  # there is no mirroring
    swipe_predict(root, tmp_path / "parts", "--save_uncertainty", *sources, folds=(0, 1))
    for source in sources:
        parts.append(read_labels(tmp_path / "parts" / source / labels.name))
        assert parts[-1].max() > 1e-6
    np.testing.assert_allclose(sum(parts), read_labels(whole), atol=1e-5)
    np.testing.assert_array_equal(read_labels(tmp_path / "parts" / labels.name), read_labels(labels))


def predictor_of(root, name):
    predictor = SwIPEPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model_folder(root, name)), (0,), "checkpoint_final.pth")
    return predictor


def mesh_command(root, output, *arguments, name=ABDOMEN):
    fixed = ("-i", images_of(root, name), "-o", output, "-d", name, "-c", "3d_fullres", *MODEL, *ON_CPU, "-f", 0)
    options = ("--disable_tta", "--disable_progress_bar", *arguments)
    call_command("nnUNetv2_swipe_mesh", *fixed, *options, function=mesh_main)


def test_surfaces_surround_what_is_probable(root, tmp_path):
    mesh_command(root, tmp_path / "meshes", "--classes", "organs", "--format", "ply", name=REGIONS)
    (file,) = (tmp_path / "meshes").rglob("*.*")
    case = image_of(root, REGIONS).name.removesuffix("_0000.nii.gz")
    assert file.relative_to(tmp_path / "meshes").as_posix() == f"{case}/organs.ply"
    surface = pyvista.read(file)
    assert surface.n_open_edges == 0
    image = predictor_of(root, REGIONS).encode([image_of(root, REGIONS)])
    volume = (image.probabilities()[0] > 0.5).sum() * np.prod(image.grid.spacing)
    assert surface.volume == pytest.approx(volume, rel=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--classes", "nose"), "no class 'nose'; there are"), (("--spacing", 0), "above 0")],
    ids=str,
)
def test_bad_input_of_surfaces_is_named(root, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="1"):
        mesh_command(root, tmp_path, *arguments)
    assert re.search(message, capsys.readouterr().err)


def test_benchmark_of_grids(root):
    cases = sorted(f.name.removesuffix(".nii.gz") for f in (root / "nnUNet_raw" / ABDOMEN / "labelsTr").iterdir())[:2]
    result = measure_grid(model_folder(root, ABDOMEN), [0], cases, torch.device("cpu"))
    assert result["dice"]["between"] > result["dice"]["nnU-Net"]
    entropy = "entropy of a single own-patch pass"
    assert set(result["AUROC"]) == {"all variances", "patches, mirroring and folds", *UNCERTAINTIES, entropy}
    assert result["AUROC"]["folds"] == 0.5  # there is one
    assert f"{result['dice']['between']:.4f}" in report(result)


def test_in_python(root):
    """Encoded once, asked twice."""
    image = predictor_of(root, ABDOMEN).encode([image_of(root, ABDOMEN)])
    labels = image.labels()
    np.testing.assert_array_equal(predictor_of(root, ABDOMEN).encode(image_of(root, ABDOMEN)).labels(), labels)
    index = np.argwhere(labels > 0)[::37]
    probabilities = image.query(image.grid.position_of(index.astype(float)))
    assert np.mean(probabilities.argmax(1) == labels[tuple(index.T)]) > 0.99
    fine = OutputGrid(size=tuple(3 * n for n in reversed(labels.shape))).of(image.grid)
    np.testing.assert_allclose(image.attention(fine)[:, 1::3, 1::3, 1::3], image.attention(), atol=1e-6)


def test_arrays_and_sequences_are_decoded_too(root, tmp_path):
    """What nnU-Net's predictor offers besides folders."""
    predictor = predictor_of(root, ABDOMEN)
    file = str(image_of(root, ABDOMEN))
    image, properties = predictor.plans_manager.image_reader_writer_class().read_images([file])
    expected = predictor.encode([file]).labels()
    np.testing.assert_array_equal(predictor.encode_array(image, properties).labels(), expected)
    np.testing.assert_array_equal(predictor.predict_single_npy_array(image, properties), expected)
    ((labels, probabilities),) = predictor.predict_from_files_sequential([[file]], None, True)
    np.testing.assert_array_equal(probabilities.argmax(0), labels)
    assert np.mean(labels == expected) > 0.99
    predictor.predict_from_files_sequential([[file]], [str(tmp_path / "case")])
    np.testing.assert_array_equal(read_labels(tmp_path / "case.nii.gz"), expected)


def test_commands_are_declared():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for name, function in (("predict", main), ("mesh", mesh_main), ("report", report_main)):
        assert f'nnUNetv2_swipe_{name} = "{function.__module__}:{function.__name__}"' in text
