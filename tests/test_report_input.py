"""The report of files that are damaged, hostile or of one another's cases: named, or shown as they are."""

import base64
import html
import io
import json
import re
import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import plotly.graph_objects as go
import pytest
import SimpleITK as sitk
from nnunet_helpers import call_command, write_volume
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from PIL import Image

from nnunetv2_swipe.commands.report import main
from nnunetv2_swipe.report import build
from nnunetv2_swipe.report.cases import Case, cases_of_predictions
from nnunetv2_swipe.report.page import CaseRow, Report, write_page
from nnunetv2_swipe.report.pictures import grey_levels, heat_layer, image_layer, view
from nnunetv2_swipe.report.structures import Structures
from nnunetv2_swipe.report.volumes import read_case, read_image
from score_model import read_truth

STRUCTURES = Structures({"liver": (1,)}, False, None)
MAPS = ("predictions/p.nii.gz", "truth/p.nii.gz", "predictions/uncertainty/p.nii.gz")


def labels_of_a_cube():
    labels = np.zeros((6, 7, 8), dtype=np.uint8)
    labels[2:4, 2:5, 3:6] = 1
    return labels


@pytest.fixture
def case(tmp_path):
    """A case `p`: its image of 1 x 2 x 3 mm, prediction, truth and uncertainty, which belong together."""
    for name in ("images", "predictions/uncertainty", "truth"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("images/p_0000.nii.gz", *MAPS):
        dtype = np.uint8 if name in MAPS[:2] else np.float32
        write_volume(labels_of_a_cube().astype(dtype), tmp_path / name, spacing=(3.0, 2.0, 1.0))
    prediction, truth = (tmp_path / name for name in MAPS[:2])
    return Case("p", [tmp_path / "images" / "p_0000.nii.gz"], prediction, truth, None)


@pytest.fixture
def predictions(case):
    """The folder of its prediction, as nnU-Net leaves it."""
    folder = case.prediction.parent
    dataset = {"labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    plans = {"dataset_name": "Dataset900_None", "image_reader_writer": "SimpleITKIO"}
    arguments = {"list_of_lists_or_source_folder": str(case.images[0].parent)}
    for name, content in (
        ("dataset.json", dataset),
        ("plans.json", plans),
        ("predict_from_raw_data_args.json", arguments),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder


def run_report(folder, output):
    call_command("nnUNetv2_swipe_report", folder, "-o", output, "--disable_progress_bar", function=main)


def embedded(file):
    """The data of the cases in a page, read as strictly as a browser reads JSON."""

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    pattern = r'<script type="application/json" class="case-data">(.*?)</script>'
    scripts = re.findall(pattern, file.read_text(), re.DOTALL)
    return [json.loads(script, parse_constant=refuse) for script in scripts]


def test_a_folder_of_predictions_has_a_report(predictions, tmp_path):
    """Although a system left a file of its own there."""
    (predictions / "._p.nii.gz").write_bytes(b"\0\5\x16\7")
    run_report(predictions, tmp_path / "report.html")
    (shown,) = embedded(tmp_path / "report.html")
    assert [layer["name"] for layer in shown["view"]["layers"]] == ["Image", "Prediction", "Uncertainty"]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.SetSpacing((1.0, 2.0, 4.0)),
        lambda image: image.SetOrigin((20.0, 0.0, 0.0)),
        lambda image: image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)),
    ],
    ids=["spacing", "origin", "direction"],
)
def test_a_map_of_another_grid_is_named(case, tmp_path, name, change):
    """Although it has as many voxels."""
    image = sitk.ReadImage(str(tmp_path / name))
    change(image)
    sitk.WriteImage(image, str(tmp_path / name))
    with pytest.raises(ValueError, match=rf"{name} does not lie where its image .*p_0000\.nii\.gz lies"):
        read_case(case, SimpleITKIO(), STRUCTURES)


def test_maps_of_one_grid_belong_together_for_each_reader(case):
    for reader in (SimpleITKIO(), SimpleITKIOWithReorient(), NibabelIO(), NibabelIOWithReorient()):
        assert (read_case(case, reader, STRUCTURES).prediction == 1).sum() == labels_of_a_cube().sum()


def test_a_grid_that_was_rounded_is_the_same(case):
    image = sitk.ReadImage(str(case.truth))
    image.SetOrigin((1e-3, -1e-3, 0.0))
    image.SetSpacing((1.0001, 2.0, 3.0))
    sitk.WriteImage(image, str(case.truth))
    np.testing.assert_array_equal(read_case(case, SimpleITKIO(), STRUCTURES).truth, labels_of_a_cube())


@pytest.mark.parametrize("name", MAPS[:2])
@pytest.mark.parametrize("label", [1.5, 7, np.nan], ids=str)
def test_a_label_that_is_not_declared_is_named(case, tmp_path, name, label):
    labels = labels_of_a_cube().astype(np.float32)
    labels[0, 0, 0] = label
    write_volume(labels, tmp_path / name, spacing=(3.0, 2.0, 1.0))
    with pytest.raises(ValueError, match=rf"{name} holds the .* {label:g}"):
        read_case(case, NibabelIO(), STRUCTURES)  # SimpleITK reads NaN as 0


def test_the_truth_that_scripts_score_with_is_of_the_image(case):
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    predictor = SimpleNamespace(
        plans_manager=SimpleNamespace(image_reader_writer_class=SimpleITKIO), label_manager=labels
    )
    files = {"images": [str(case.images[0])], "label": str(case.truth)}
    truth, grid = read_truth(predictor, files)
    np.testing.assert_array_equal(truth, labels_of_a_cube())
    assert grid.spacing == pytest.approx((3, 2, 1))
    write_volume(labels_of_a_cube(), case.truth)
    with pytest.raises(ValueError, match=r"truth/p\.nii\.gz does not lie where its image"):
        read_truth(predictor, files)


@pytest.mark.parametrize("name", ["images/p_0000.nii.gz", *MAPS])
@pytest.mark.parametrize("damage", [lambda content: content[:20], lambda _: b"", lambda _: b"no image"])
def test_a_damaged_file_is_named(case, tmp_path, name, damage):
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
        read_case(case, SimpleITKIO(), STRUCTURES)


def test_a_label_map_of_four_axes_is_named(case):
    labels = np.stack([labels_of_a_cube().T] * 2, -1)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), case.truth)
    with pytest.raises(ValueError, match=r"truth/p\.nii\.gz"):
        read_case(case, SimpleITKIO(), STRUCTURES)


def test_a_label_map_in_colour_is_named(tmp_path):
    for name in ("p_0000", "p"):
        Image.fromarray(np.zeros((8, 9, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    case = Case("p", [tmp_path / "p_0000.png"], tmp_path / "p.png", None, None)
    with pytest.raises(ValueError, match=r"p\.png has 3 channels"):
        read_case(case, NaturalImage2DIO(), STRUCTURES)
    Image.fromarray(np.ones((8, 9), dtype=np.uint8)).save(tmp_path / "p.png")
    assert read_case(case, NaturalImage2DIO(), STRUCTURES).prediction.shape == (1, 8, 9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", '{"labels": {"background": 0}', r"dataset\.json is not a JSON file"),
        ("dataset.json", '{"file_ending": ".nii.gz"}', r"dataset\.json lacks the key 'labels'"),
        ("dataset.json", '{"labels": {"background": 0, "a": 1}}', r"dataset\.json lacks the key 'file_ending'"),
        ("plans.json", "", r"plans\.json is not a JSON file"),
        ("plans.json", "{}", r"plans\.json lacks the key 'dataset_name'"),
        ("predict_from_raw_data_args.json", '{"list_of', r"predict_from_raw_data_args\.json is not a JSON file"),
        ("predict_from_raw_data_args.json", '{"list_of_lists_or_source_folder": ["p"]}', "not say which images"),
        ("predict_from_raw_data_args.json", '{"list_of_lists_or_source_folder": [[1]]}', "not say which images"),
        (
            "predict_from_raw_data_args.json",
            '{"list_of_lists_or_source_folder": [["a"], ["b"]]}',
            "no image of",
        ),
    ],
)
def test_a_damaged_json_file_is_named(predictions, tmp_path, capsys, monkeypatch, name, content, message):
    monkeypatch.setattr("nnunetv2_swipe.files._PAUSE_S", 0)
    (predictions / name).write_text(content)
    with pytest.raises(SystemExit, match="1"):
        run_report(predictions, tmp_path / "report.html")
    assert re.search(message, capsys.readouterr().err)


def test_two_images_of_one_name_are_named(case, predictions):
    """As Python's lists may hold them; which of them was predicted, nobody knows."""
    other = case.images[0].parent.with_name("others")
    shutil.copytree(case.images[0].parent, other)
    lists = [[str(case.images[0])], [str(other / case.images[0].name)]]
    file = predictions / "predict_from_raw_data_args.json"
    file.write_text(json.dumps({"list_of_lists_or_source_folder": lists}))
    with pytest.raises(ValueError, match=r"two cases p .*images/p_0000.nii.gz and .*others/p_0000.nii.gz"):
        cases_of_predictions(predictions, ".nii.gz", None, None)
    assert cases_of_predictions(predictions, ".nii.gz", other, None)[0].images == [other / case.images[0].name]


def test_a_crop_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    data = tmp_path / "Dataset900_None" / "data"
    data.mkdir(parents=True)
    for name in ("a", "b", "._a"):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (data / f"{name}{ending}").write_bytes(b"cut off")
    assert build._case_to_crop(data, {"a"}) == "b"
    assert build._case_to_crop(data, {"a", "b"}) == "a"
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr(build, "read_block", lambda _: SimpleNamespace(dims=3))
    predictor = SimpleNamespace(
        configuration_manager=SimpleNamespace(data_identifier="data", configuration={"patch_size": (8, 8, 8)}),
        plans_manager=SimpleNamespace(dataset_name="Dataset900_None"),
        label_manager=SimpleNamespace(foreground_labels=[1], has_regions=False, has_ignore_label=False),
    )
    with pytest.raises(ValueError, match=r"No training crop can be made of .*Dataset900_None/data"):
        build.describe_model(predictor, {}, STRUCTURES, [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_values_that_are_not_finite_leave_the_picture_as_it_is(bad):
    image = np.random.default_rng(0).normal(0, 1, (4, 20, 20)).astype(np.float32)
    expected = grey_levels(image)
    image[0, 0, 0] = bad
    found = grey_levels(image)
    assert found[0, 0, 0] == (255 if bad == np.inf else 0)
    assert np.abs(found.astype(int) - expected)[1:].max() <= 2
    assert expected.std() > 30


def test_an_image_with_nan_is_shown(tmp_path):
    values = np.random.default_rng(0).normal(0, 1, (4, 5, 6)).astype(np.float32)
    values[0, 0, 0] = np.nan
    file = tmp_path / "p_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), file)
    assert read_image([file], SimpleITKIO()).values.shape == (1, 6, 5, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
def test_an_image_of_one_value_is_black(value):
    assert not grey_levels(np.full((2, 3, 4), value, dtype=np.float32)).any()


def test_an_image_of_tiny_values_or_little_content_is_not_black():
    """Such as a diffusion coefficient in square metres per second."""
    image = np.linspace(0, 3e-9, 1000, dtype=np.float32).reshape(10, 10, 10)
    assert grey_levels(image).std() > 30
    image = np.zeros((10, 20, 20), dtype=np.float32)
    image[5, 5, 5:8] = (1, 2, 4)
    np.testing.assert_array_equal(grey_levels(image)[5, 5, 4:9], [0, 63, 127, 255, 0])


def test_where_uncertainty_is_not_a_number_nothing_is_shown():
    values = np.array([[[0.0, np.nan, 0.25, np.inf]]])
    source = heat_layer("Uncertainty", values, 0, 0.25)["source"].removeprefix("data:image/png;base64,")
    opacity = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGBA"))[..., 3]
    assert opacity[0].tolist() == [0, 0, 220, 220]


def page_of(name, file, *, spacing=(1, 1, 1)):
    """A page about a class and a case of this name."""
    mask = np.ones((1, 2, 2), dtype=bool)
    seen = view([image_layer(mask[None].astype(float))], spacing, np.arange(1), 1, mask)
    figure = go.Figure([go.Mesh3d(x=[0, 1, 0], y=[0, 0, 1], z=[0, 0, 0], name=name)])
    scores = {name: {"Dice": 0.5, "NSD": None, "size": 1.0, "true size": 1.0}}
    row = CaseRow(Case(name, [], file, None, None), scores, False, seen, figure)
    write_page(Report(name, Structures({name: (1,)}, False, None), [row]), file)
    return embedded(file)[0]


@pytest.mark.parametrize("name", ["<a href='https://example.org'>liver</a>", "a &lt; b", "<b>&</b>", "left liver"])
def test_a_name_is_text_for_plotly_too(tmp_path, name):
    """Plotly makes links of `<a>` and turns `&lt;` into `<`: so the page must hold the name escaped for it."""
    data = page_of(name, tmp_path / "report.html")
    shown = data["surfaces"]["data"][0]["name"]
    assert "<" not in shown
    assert html.unescape(shown) == name
    assert data["name"] == name  # which the page sets as text
    assert "<a href" not in (tmp_path / "report.html").read_text().partition("<main>")[2].partition("<script>")[0]


def test_nan_does_not_break_the_page(tmp_path):
    """NaN is no JSON: a browser would show nothing at all."""
    assert page_of("liver", tmp_path / "report.html", spacing=(np.nan, 1, 1))["view"]["spacing"] == [None, 1, 1]


def test_a_report_on_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, full_disk):
    file = tmp_path / "report.html"
    file.write_text("of yesterday")
    with full_disk(), pytest.raises(OSError, match=r"report\.html cannot be written"):
        page_of("liver", file)
    assert file.read_text() == "of yesterday"
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]


def test_a_link_in_a_shared_folder_is_not_written_through(tmp_path):
    (tmp_path / "other").write_text("theirs")
    (tmp_path / ".unfinished_report.html").symlink_to(tmp_path / "other")
    page_of("liver", tmp_path / "report.html")
    assert (tmp_path / "other").read_text() == "theirs"
