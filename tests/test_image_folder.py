"""Which images are predicted, and where label maps must not lie."""

import re

import pytest

from nnunetv2_swipe.images.folder import case_of, images_of_cases, require_places

NII = ".nii.gz"


@pytest.fixture
def folder(tmp_path):
    """Factory of a folder `images` with empty files of these names."""

    def make(*names):
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        for name in names:
            (images / name).touch()
        return str(images)

    return make


def test_the_files_of_every_case_are_found(folder):
    names = ["b_0001", "b_0000", "a.1 left_0000", "b_0000_0000", "UPPER.nii_0000", ".hidden_0000", "B1_0000"]
    found = images_of_cases(folder(*[name + NII for name in names], "notes.txt", "b_0000.nii"), NII)
    assert [case_of(files[0], NII) for files in found] == [".hidden", "B1", "UPPER.nii", "a.1 left", "b", "b_0000"]
    assert [re.search(r"\d+.nii.gz", f)[0][:4] for f in found[4]] == ["0000", "0001"]


def test_files_without_the_number_of_a_channel_are_named(folder):
    images = folder(f"a_0000{NII}", f"a{NII}", f"b_00001{NII}", f"c_000{NII}", f"d_seg{NII}", f"_0000{NII}")
    with pytest.raises(ValueError, match=r"holds _0000.nii.gz, a.nii.gz, b_00001.nii.gz and 2 more, without the num"):
        images_of_cases(images, NII)


def test_a_channel_that_is_missing_before_the_last_one_is_named(folder):
    """The network would take the third channel for the second."""
    with pytest.raises(ValueError, match=r"lacks a_0001.nii.gz; there are a_0000.nii.gz, a_0002.nii.gz"):
        images_of_cases(folder(f"a_0000{NII}", f"a_0002{NII}"), NII)


def test_two_cases_of_one_output_are_named():
    images = [["x/a_0000.nii.gz"], ["x/b_0000.nii.gz"], ["y/a_0000.nii.gz"]]
    with pytest.raises(ValueError, match=r"x/a_0000.nii.gz and y/a_0000.nii.gz would both be written as out/a.nii.gz"):
        require_places(images, ["out/a", "out/b", "out/a"], NII, inputs=[])


def test_one_output_for_each_case_is_asked_for():
    with pytest.raises(ValueError, match="There are 2 cases, but 1 output files"):
        require_places([["a_0000.nii.gz"], ["b_0000.nii.gz"]], ["out/a"], NII, inputs=[])


def test_an_image_is_not_replaced():
    with pytest.raises(ValueError, match=r"label map of x/a_0000.nii.gz would replace the image x/a_0000.nii.gz"):
        require_places([["x/a_0000.nii.gz"]], ["x/a_0000"], NII, inputs=[])


def test_the_folder_of_the_input_is_no_output_also_behind_a_link(folder, tmp_path):
    images = folder(f"a_0000{NII}")
    (tmp_path / "link").symlink_to(images)
    for output in (images, str(tmp_path / "link"), f"{images}/../images"):
        with pytest.raises(ValueError, match=r"The output folder .*images is also that of the images"):
            require_places([[f"{images}/a_0000{NII}"]], [f"{output}/a"], NII, inputs=[None, images])


@pytest.mark.parametrize("name", ["dataset", "plans"])
def test_the_spacing_of_a_tiff_does_not_replace_a_file_of_nnunet(name):
    images, outputs = [[f"in/{name}_0000.tif"]], [f"out/{name}"]
    with pytest.raises(ValueError, match=rf"in/{name}_0000\.tif would replace nnU-Net's out/{name}\.json"):
        require_places(images, outputs, ".tif", inputs=[])
    require_places([[f"in/{name}_0000.nii.gz"]], outputs, ".nii.gz", inputs=[])


def test_what_macos_adds_to_copies_is_no_case(tmp_path):
    for name in ("a_0000.nii.gz", "._a_0000.nii.gz"):
        (tmp_path / name).touch()
    assert images_of_cases(str(tmp_path), ".nii.gz") == [[str(tmp_path / "a_0000.nii.gz")]]
