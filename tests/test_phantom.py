"""The synthetic datasets of the demo: what nnU-Net expects of a raw dataset, on small grids."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

# The scripts are not part of the package; they import one another as Python lets a running script do.
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from phantom import ABDOMEN_NAME, FUNDUS_NAME, write_phantoms

CASES = 5
SIZE_SCALE = 0.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nnUNet_raw")
    write_phantoms(folder, cases_3d=CASES, cases_2d=CASES, size_scale=SIZE_SCALE, seed=3)
    return folder


def read_array(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(file)) if file.name.endswith(".nii.gz") else np.array(Image.open(file))


def read_all(folder):
    return {str(file.relative_to(folder)): read_array(file) for file in sorted(folder.rglob("*_*.*[gz]"))}


def image_of(label_file, ending):
    images = label_file.parent.with_name(label_file.parent.name.replace("labels", "images"))
    return images / (label_file.name.removesuffix(ending) + "_0000" + ending)


def label_files(folder, name):
    return sorted((folder / name).glob("labelsT[rs]/*"))


@pytest.mark.parametrize(("name", "channels"), [(ABDOMEN_NAME, ["MRI"]), (FUNDUS_NAME, ["R", "G", "B"])])
def test_dataset_json_describes_the_files(folder, name, channels):
    description = json.loads((folder / name / "dataset.json").read_text())
    assert list(description["channel_names"].values()) == channels
    assert description["numTraining"] == CASES == len(list((folder / name / "imagesTr").iterdir()))
    labels = list(description["labels"].values())
    assert labels == list(range(len(labels)))
    assert all(file.name.endswith(description["file_ending"]) for file in label_files(folder, name))


@pytest.mark.parametrize(("name", "ending"), [(ABDOMEN_NAME, ".nii.gz"), (FUNDUS_NAME, ".png")])
def test_every_image_has_its_labels(folder, name, ending):
    for part, expected in (("Tr", CASES), ("Ts", 1)):
        labels = sorted((folder / name / f"labels{part}").iterdir())
        images = sorted((folder / name / f"images{part}").iterdir())
        assert len(labels) == expected
        assert images == [image_of(file, ending) for file in labels]


@pytest.mark.parametrize("name", [ABDOMEN_NAME, FUNDUS_NAME])
def test_every_class_occurs_and_no_other(folder, name):
    labels = json.loads((folder / name / "dataset.json").read_text())["labels"]
    found = [set(np.unique(read_array(file)).tolist()) for file in label_files(folder, name)]
    assert set.union(*found) == set(labels.values())
    always = {number for label, number in labels.items() if label not in ("tumour", "exudate")}
    assert all(always <= numbers for numbers in found)
    assert any(numbers == always for numbers in found)  # a network also has to learn from patients without a lesion


def test_volumes_and_labels_share_an_anisotropic_geometry(folder):
    directions, spacings = [], []
    for file in label_files(folder, ABDOMEN_NAME):
        labels, image = sitk.ReadImage(file), sitk.ReadImage(image_of(file, ".nii.gz"))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(labels, get)() == pytest.approx(getattr(image, get)())
        x_mm, y_mm, z_mm = image.GetSpacing()
        assert x_mm == pytest.approx(y_mm)
        assert z_mm / x_mm > 1.8
        assert not np.allclose(image.GetOrigin(), 0)
        axes = np.reshape(image.GetDirection(), (3, 3))
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-5)
        directions.append(bool(np.allclose(axes, np.eye(3))))
        spacings.append(image.GetSpacing())
    assert len(set(spacings)) == len(spacings)
    assert set(directions) == {True, False}


def test_volumes_have_the_size_asked_for(folder):
    for file in label_files(folder, ABDOMEN_NAME):
        size = np.array(read_array(file).shape) / SIZE_SCALE
        assert np.all((size >= (30, 70, 74)) & (size <= (42, 86, 90)))


def test_anatomy_keeps_its_size_when_voxels_grow(tmp_path):
    """The liver of one patient, rendered on two grids, has the same volume and place in millimetres."""
    volumes_ml, centres_mm = [], []
    for scale in (0.5, 1.0):
        write_phantoms(tmp_path / str(scale), cases_3d=1, cases_2d=0, size_scale=scale)
        image = sitk.ReadImage(tmp_path / str(scale) / ABDOMEN_NAME / "labelsTr" / "abdomen_000.nii.gz")
        labels = sitk.GetArrayFromImage(image)
        volumes_ml.append((labels == 1).sum() * np.prod(image.GetSpacing()) / 1000)
        middle = (np.array(image.GetSize()) - 1) / 2
        centres_mm.append((np.argwhere(labels == 1).mean(0)[::-1] - middle) * image.GetSpacing())
    assert volumes_ml[0] == pytest.approx(volumes_ml[1], rel=0.05)
    np.testing.assert_allclose(centres_mm[0], centres_mm[1], atol=1.5)


def test_air_is_dark_and_organs_differ_in_intensity(folder):
    file = label_files(folder, ABDOMEN_NAME)[0]
    labels, image = read_array(file), read_array(image_of(file, ".nii.gz"))
    assert image.dtype == np.int16
    corner = image[:, :2, :2].mean()
    means = [image[labels == number].mean() for number in (1, 2, 3, 4)]
    assert corner < 0.2 * min(means)
    assert max(means) == means[3]  # the aorta is the brightest
    assert image[labels == 1].std() > 10


def test_photographs_are_rgb_of_about_the_size_asked_for(folder):
    shapes = set()
    for file in label_files(folder, FUNDUS_NAME):
        image, labels = read_array(image_of(file, ".png")), read_array(file)
        assert image.dtype == labels.dtype == np.uint8
        assert image.shape == (*labels.shape, 3)
        np.testing.assert_allclose(np.array(labels.shape) / SIZE_SCALE, (160, 192), rtol=0.1)
        assert image[0, 0].max() < 40 < image[image.shape[0] // 2, image.shape[1] // 2, 0]  # dark around the aperture
        shapes.add(image.shape)
    assert len(shapes) > 1


def test_the_cup_lies_inside_the_disc(folder):
    for file in label_files(folder, FUNDUS_NAME):
        labels = read_array(file)
        cup, disc = np.argwhere(labels == 2), np.argwhere(np.isin(labels, (1, 2)))
        assert np.all(cup.min(0) > disc.min(0))
        assert np.all(cup.max(0) < disc.max(0))


def test_the_seed_decides_and_more_cases_change_nothing(folder, tmp_path):
    write_phantoms(tmp_path / "same", cases_3d=2, cases_2d=2, size_scale=SIZE_SCALE, seed=3)
    write_phantoms(tmp_path / "other", cases_3d=2, cases_2d=2, size_scale=SIZE_SCALE, seed=4)
    first, same, other = read_all(folder), read_all(tmp_path / "same"), read_all(tmp_path / "other")
    assert len(same) == 12
    for name, array in same.items():
        np.testing.assert_array_equal(array, first[name])
        assert array.shape != other[name].shape or not np.array_equal(array, other[name])


@pytest.mark.parametrize("size_scale", [0.15, 0.25])
def test_tiny_grids_can_be_written(tmp_path, size_scale):
    folders = write_phantoms(tmp_path, cases_3d=2, cases_2d=2, size_scale=size_scale)
    assert [folder.name for folder in folders] == [ABDOMEN_NAME, FUNDUS_NAME]
    assert all(len(np.unique(read_array(file))) > 2 for file in tmp_path.glob("*/labelsTr/*"))


def test_a_dataset_can_be_left_out(tmp_path):
    assert write_phantoms(tmp_path, cases_3d=0, cases_2d=1, size_scale=0.2) == [tmp_path / FUNDUS_NAME]
    assert not (tmp_path / ABDOMEN_NAME).exists()


def test_an_old_dataset_is_not_mixed_with_a_new_one(tmp_path):
    write_phantoms(tmp_path, cases_3d=0, cases_2d=1, size_scale=0.2)
    with pytest.raises(FileExistsError, match="not empty"):
        write_phantoms(tmp_path, cases_3d=0, cases_2d=1, size_scale=0.2)


@pytest.mark.parametrize("options", [{"cases_3d": -1}, {"cases_2d": -1}, {"size_scale": 0.0}, {"size_scale": -1.0}])
def test_impossible_requests_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"must (not )?be"):
        write_phantoms(tmp_path, **options)
