"""The report: what it says of cases worked out by hand, and how it behaves in a browser."""

import base64
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import SimpleITK as sitk
from nnunet_helpers import (
    ABDOMEN,
    FUNDUS,
    ON_CPU,
    REGIONS,
    call_command,
    model_folder,
    nnunet_folders,
    read_labels,
    write_volume,
)
from PIL import Image

from nnunetv2_swipe.commands.common import trained_folds
from nnunetv2_swipe.commands.report import main
from nnunetv2_swipe.geometry import Grid
from nnunetv2_swipe.report import build, case_views
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.page import CaseRow, Report, worst_first, write_page
from nnunetv2_swipe.report.pictures import displayed_shape, edges, error_layer, thinned, view
from nnunetv2_swipe.report.plan_in_words import plan_in_words
from nnunetv2_swipe.report.structures import Structures

QUIET = ("--disable_tta", "--disable_progress_bar", *ON_CPU)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def root(trained_models):
    with nnunet_folders(trained_models) as root:
        yield root


@pytest.fixture(scope="module")
def model(root, tmp_path_factory):
    """A model folder of two folds; the predictions of its validation cases are the truth, moved by 1, 2, ... voxels."""
    source = model_folder(root, ABDOMEN)
    model = tmp_path_factory.mktemp("results") / ABDOMEN / source.name
    shutil.copytree(source, model)
    for number, file in enumerate(sorted(model.glob("fold_*/validation/*.nii.gz")), start=1):
        truth = sitk.ReadImage(str(truth_of(root, ABDOMEN) / file.name))
        write_volume(np.roll(sitk.GetArrayFromImage(truth), number, 2), file, like=truth)
    return model


@pytest.fixture(scope="module")
def report_of_model(model, tmp_path_factory):
    return run_report(model, tmp_path_factory.mktemp("report"))


@pytest.fixture
def browser():
    """Headless Chromium, which draws WebGL without a GPU."""
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


def open_page(browser, file):
    """The page, and what goes wrong and which requests are made in it from now on."""
    page, problems, requests = browser.new_page(viewport={"width": 1280, "height": 1000}), [], set()
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("data:", "blob:")) else requests.add(r.url))
    page.goto(file.as_uri())
    return page, problems, requests


def picture(element):
    """Of an element of a page, (rows, columns, 3)."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


def coloured(picture):
    """Which pixels within the left four fifths (the legend is on the right) are no greys, nor bluish backgrounds."""
    part = picture[:, : picture.shape[1] * 4 // 5]
    return part.max(2) - part.min(2) > 60


def truth_of(root, name):
    return root / "nnUNet_raw" / name / "labelsTr"


def run_report(folder, output, *arguments):
    file = output / "report.html"
    call_command("nnUNetv2_swipe_report", folder, "-o", file, *QUIET, *arguments, function=main)
    return file


def embedded(file):
    """The data of the cases in a page."""
    scripts = re.findall(
        r'<script type="application/json" class="case-data">(.*?)</script>', file.read_text(), re.DOTALL
    )
    return [json.loads(script) for script in scripts]


def layers_of(case):
    """Name -> RGBA slices (n, h, w, 4) of a case's layers."""
    (n, h, w), columns = case["view"]["shape"], case["view"]["columns"]
    layers = {}
    for layer in case["view"]["layers"]:
        data = base64.b64decode(layer["source"].removeprefix("data:image/png;base64,"))
        mosaic = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
        slices = mosaic.reshape(-1, h, columns, w, 4).swapaxes(1, 2).reshape(-1, h, w, 4)
        layers[layer["name"]] = slices[:n]
    return layers


def names_in(file):
    """The cases in the table, in order, and their mean Dice."""
    rows = re.findall(r"<tr[^>]*><td>(\w+)</td><td>[01]</td><td class=\"number\">([\d.]+)</td>", file.read_text())
    return [name for name, _ in rows], [float(dice) for _, dice in rows]


class TestOfAModel:
    def test_in_a_browser(self, report_of_model, browser):
        """No errors, no requests; the slider moves the slice, boxes show layers, the surface can be turned."""
        page, problems, requests = open_page(browser, report_of_model)
        surface = page.locator("#surfaces canvas").first
        surface.wait_for(timeout=60_000)
        page.wait_for_function("document.querySelector('#curves .scatterlayer')", timeout=60_000)

        def pixels(selector="#slices canvas"):
            return page.evaluate(f"document.querySelector('{selector}').toDataURL()")

        shown = [pixels()]
        slider = page.locator("#slices input[type=range]")
        for _ in range(3):
            slider.press("ArrowRight")
        shown.append(pixels())
        page.locator("#slices label", has_text="Prediction").click()
        shown.append(pixels())
        page.locator("#slices label", has_text="Uncertainty").click()
        shown.append(pixels())
        page.locator("tr[data-case]").nth(1).click()
        page.wait_for_function(
            "old => document.querySelector('#slices canvas').toDataURL() !== old", arg=shown[-1], timeout=60_000
        )
        shown.append(pixels())
        assert len(set(shown)) == len(shown)
        assert page.locator("#case-name").inner_text() == page.locator("tr.chosen td").first.inner_text()

        before = picture(page.locator("#surfaces"))
        assert coloured(before).sum() > 1000  # nothing else in the scene has a colour
        box = page.locator("#surfaces").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3, steps=5)
        page.mouse.up()
        for _ in range(60):  # drawing takes its time
            moved = (coloured(before) != coloured(picture(page.locator("#surfaces")))).sum()
            if moved > 1000:
                break
            page.wait_for_timeout(500)
        assert moved > 1000

        assert not problems
        assert requests == {report_of_model.as_uri()}

    def test_cases_are_in_order_of_their_dice(self, report_of_model, model):
        names, dice = names_in(report_of_model)
        assert set(names) == {f.name.removesuffix(".nii.gz") for f in model.glob("fold_*/validation/*.nii.gz")}
        assert dice == sorted(dice)
        assert dice[0] < dice[-1] < 1

    def test_errors_are_where_the_maps_differ(self, report_of_model, model, root):
        for case in embedded(report_of_model):
            (file,) = model.glob(f"fold_*/validation/{case['name']}.nii.gz")
            found, truth = read_labels(file), read_labels(truth_of(root, ABDOMEN) / file.name)
            error = layers_of(case)["Error"]
            red, _, blue, opacity = np.moveaxis(error.astype(int), -1, 0)
            np.testing.assert_array_equal(opacity > 0, found != truth)
            np.testing.assert_array_equal((opacity > 0) & (red > 200), (found > 0) & (truth == 0))
            np.testing.assert_array_equal((opacity > 0) & (blue > 240), (found == 0) & (truth > 0))
            assert case["view"]["first"] == (truth > 0).sum((1, 2)).argmax()

    def test_what_the_model_knows(self, report_of_model):
        """Uncertainty, attention to each of the four stages, surfaces of the predictions and of the truth."""
        (case, *_) = embedded(report_of_model)
        layers = layers_of(case)
        attention = [name for name in layers if name.startswith("Attention to stage")]
        assert len(attention) == 4
        for name in ("Uncertainty", *attention):
            assert len(np.unique(layers[name][..., 3])) > 10
        surfaces = {trace["name"]: trace for trace in case["surfaces"]["data"]}
        assert {"liver, truth", "aorta, truth"} <= set(surfaces)
        assert any(not name.endswith("truth") for name in surfaces)

    def test_training_and_plan(self, report_of_model):
        text = report_of_model.read_text()
        training = json.loads(re.search(r'id="common-data">(.*?)</script>', text, re.DOTALL)[1])
        assert {trace["name"] for trace in training["curves"]["data"]} >= {"training, fold 0", "validation, fold 1"}
        points = np.array(training["crop"]["points"])
        assert points.shape == (256, 4)  # as the narrow plan says
        assert ((points[:, :3] >= -0.5) & (points[:, :3] <= np.array(training["crop"]["shape"]) - 0.5)).all()
        assert len(np.unique(points[:, 3])) > 2
        for words in ("Patch size S", "thickness of the thinnest class (aorta", "rule gives"):
            assert words in text

    def test_fewer_cases_are_shown_than_listed(self, model, tmp_path):
        file = run_report(model, tmp_path, "--cases", 1, "-f", 1)
        names, _ = names_in(file)
        assert [case["name"] for case in embedded(file)] == names[:1]
        assert len(names) == len(list((model / "fold_1" / "validation").glob("*.nii.gz")))


class TestOfPredictions:
    @pytest.fixture
    def predictions(self, root, tmp_path):
        """Labels as a prediction of the training images, of both nnU-Net's and our commands."""
        folder = tmp_path / "predictions"
        shutil.copytree(truth_of(root, REGIONS), folder)
        for name in ("dataset.json", "plans.json"):
            shutil.copy(model_folder(root, REGIONS) / name, folder)
        images = str(root / "nnUNet_raw" / REGIONS / "imagesTr")
        (folder / "predict_from_raw_data_args.json").write_text(json.dumps({"list_of_lists_or_source_folder": images}))
        return folder

    def test_regions_with_truth_and_model(self, root, predictions, tmp_path):
        """Regions overlap; where the truth is to be ignored nothing is wrong."""
        (first, *_) = sorted(predictions.glob("*.nii.gz"))
        image = sitk.ReadImage(str(first))
        changed = sitk.GetArrayFromImage(image)
        ignored = read_labels(truth_of(root, REGIONS) / first.name) == 5
        assert ignored.any()
        changed[ignored] = 1
        write_volume(changed, first, like=image)
        arguments = ("--truth", truth_of(root, REGIONS), "-m", model_folder(root, REGIONS), "--cases", 2)
        file = run_report(predictions, tmp_path, *arguments)
        text = file.read_text()
        assert "mean Dice 1.000" in text
        assert len(embedded(file)) == 2
        assert "from 0 to 0.75" in text  # variances of three regions
        (case, *_) = embedded(file)
        labels = read_labels(truth_of(root, REGIONS) / f"{case['name']}.nii.gz")
        colours = {trace["name"]: trace["color"] for trace in case["surfaces"]["data"]}
        for name, label in (("organs", 2), ("liver", 1), ("aorta", 4)):  # as the smallest region around a label
            found = layers_of(case)["Truth"][labels == label][:, :3]
            assert {f"rgb({r}, {g}, {b})" for r, g, b in found.tolist()} == {colours[f"{name}, truth"]}
        assert all(not layers_of(case)["Error"][..., 3].any() for case in embedded(file))

    def test_without_truth_and_model(self, predictions, tmp_path):
        """Volumes, surfaces of the label maps, and the uncertainty that was written beside them."""
        (first, *rest) = sorted(predictions.glob("*.nii.gz"))
        for file in rest:
            file.unlink()
        labels = sitk.ReadImage(str(first))
        (predictions / "uncertainty").mkdir()
        values = np.full(sitk.GetArrayFromImage(labels).shape, 0.25, dtype=np.float32)
        write_volume(values, predictions / "uncertainty" / first.name, like=labels)
        file = run_report(predictions, tmp_path)
        (case,) = embedded(file)
        assert set(layers_of(case)) == {"Image", "Prediction", "Uncertainty"}
        assert (layers_of(case)["Uncertainty"] == layers_of(case)["Uncertainty"][0, 0, 0]).all()
        assert {trace["name"] for trace in case["surfaces"]["data"]} == {"organs", "liver", "aorta"}
        liver = (sitk.GetArrayFromImage(labels) == 1).sum() * np.prod(labels.GetSpacing()) / 1000
        assert f">{liver:.2f}<" in file.read_text()

    def test_photographs(self, root, tmp_path, browser):
        """In colour, measured in pixels, without slider and surfaces."""
        folder = tmp_path / "predictions"
        shutil.copytree(truth_of(root, FUNDUS), folder)
        for name in ("dataset.json", "plans.json"):
            shutil.copy(model_folder(root, FUNDUS, "2d") / name, folder)
        images = root / "nnUNet_raw" / FUNDUS / "imagesTr"
        arguments = ("-i", images, "--truth", truth_of(root, FUNDUS), "-m", model_folder(root, FUNDUS, "2d"))
        file = run_report(folder, tmp_path, *arguments, "--cases", 1)
        (case,) = embedded(file)
        image = layers_of(case)["Image"][0]
        assert (image[..., 0] != image[..., 1]).any()
        assert case["surfaces"] is None
        assert "Uncertainty" in layers_of(case)
        (truth, *_) = truth_of(root, FUNDUS).glob(f"{case['name']}.png")
        assert f">{(np.asarray(Image.open(truth)) == 1).sum()}<" in file.read_text()
        assert "NSD (2 pixels)" in file.read_text()
        page, problems, _ = open_page(browser, file)
        page.wait_for_function("document.querySelector('#curves .scatterlayer')", timeout=60_000)
        assert not page.locator("#slices input[type=range]").is_visible()
        assert not page.locator("#surface-column").is_visible()
        assert not problems


@pytest.mark.parametrize(
    ("folder", "arguments", "message"),
    [
        ("nowhere", (), "nowhere holds no dataset.json"),
        ("model", ("-f", 4), "of fold 4; there are 0, 1"),
        ("model", ("-chk", "checkpoint_none.pth"), "no checkpoint_none.pth of any fold"),
        ("model", ("--cases", -1), "--cases is -1"),
        ("model", ("-o", "nowhere/report.html"), "nowhere/report.html"),
        ("model", ("-o", "empty"), "written to empty"),
        ("model", ("--truth", "empty"), "--truth has no effect"),
        ("predictions", ("-i", "images", "-f", 0), "-f has no effect"),
        ("predictions", (), "name their folder by -i"),
        ("predictions", ("-i", "empty"), "no image of .* in empty"),
        ("predictions", ("-i", "nowhere"), "nowhere, does not exist"),
        ("predictions", ("-i", "unnamed"), "no image of .* in unnamed"),
        ("predictions", ("-i", "images", "--truth", "empty"), "empty holds no label map"),
        ("predictions", ("-i", "images", "-m", "empty"), "empty holds no dataset.json"),
    ],
    ids=str,
)
def test_bad_input_is_named(root, tmp_path, monkeypatch, capsys, folder, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unnamed").mkdir()
    (tmp_path / "unnamed" / "image.nii.gz").touch()
    (tmp_path / "images").symlink_to(root / "nnUNet_raw" / ABDOMEN / "imagesTr")
    shutil.copytree(truth_of(root, ABDOMEN), tmp_path / "predictions")
    for name in ("dataset.json", "plans.json"):
        shutil.copy(model_folder(root, ABDOMEN) / name, tmp_path / "predictions")
    monkeypatch.setattr(build, "read_case", lambda *_: pytest.fail("a case was begun"))
    subject = model_folder(root, ABDOMEN) if folder == "model" else folder
    with pytest.raises(SystemExit, match="1"):
        call_command("nnUNetv2_swipe_report", subject, *QUIET, *arguments, function=main)
    error = capsys.readouterr().err
    assert error.startswith("nnUNetv2_swipe_report: ")
    assert re.search(message, error)
    assert not list(tmp_path.glob("*.html"))


def test_an_unvalidated_fold_is_named(model, tmp_path, capsys):
    copy = tmp_path / ABDOMEN / model.name
    shutil.copytree(model, copy)
    shutil.rmtree(copy / "fold_1" / "validation")
    with pytest.raises(SystemExit, match="1"):
        run_report(copy, tmp_path)
    assert "no validation of fold 1" in capsys.readouterr().err


def test_label_maps_of_another_grid_are_named(model, tmp_path, capsys):
    copy = tmp_path / ABDOMEN / model.name
    shutil.copytree(model, copy)
    (file, *_) = copy.glob("fold_0/validation/*.nii.gz")
    write_volume(np.zeros((4, 5, 6), dtype=np.uint8), file)
    with pytest.raises(SystemExit, match="1"):
        run_report(copy, tmp_path, "-f", 0)
    assert re.search(rf"{file.name} has \(4, 5, 6\) voxels", capsys.readouterr().err)


def test_what_files_are_called_cannot_change_the_page(tmp_path, browser):
    """Names of cases and classes are text, without links or scripts."""
    name = "<a href='https://example.org'>a</a></script><script>document.title='changed'</script>"
    case = Case(name, [], tmp_path, None, None)
    scores = {name: {"Dice": 0.5, "NSD": None, "size": 1.0, "true size": 1.0}}
    mask = np.ones((1, 2, 2), dtype=bool)
    seen = view([error_layer(mask, ~mask)], (1, 1, 1), np.arange(1), 1, mask)
    structures = Structures({name: (1,)}, False, None)
    figure = go.Figure([go.Scatter(y=[1, 2], name=name, showlegend=True)])
    write_page(Report("a title", structures, [CaseRow(case, scores, True, seen, figure)]), tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.title() == "a title"
    assert page.locator("tbody td").first.inner_text() == name
    assert page.locator("#case-name").inner_text() == name
    page.locator("#surfaces .legendtext").wait_for(timeout=60_000)
    assert "a href" in page.locator("#surfaces .legendtext").text_content()
    assert not page.locator("#surfaces .legend a").count()


def test_cases_without_truth_come_last():
    def row(name, dice):
        return CaseRow(Case(name, [], None, None, None), {"a": {"Dice": dice}})

    rows = [row("b", None), row("c", 0.9), row("a", None), row("d", 0.1)]
    assert [r.case.name for r in worst_first(rows)] == ["d", "c", "a", "b"]


def test_large_volumes_are_thinned():
    assert displayed_shape((300, 512, 256)) == (64, 256, 128)
    assert displayed_shape((10, 64, 32)) == (10, 64, 32)
    volume = np.arange(6)[:, None, None] * np.ones((6, 4, 4), dtype=int)
    np.testing.assert_array_equal(thinned(volume, (3, 2, 2))[:, 0, 0], [1, 3, 5])
    np.testing.assert_array_equal(thinned(volume, (12, 4, 4))[:, 0, 0], np.repeat(np.arange(6), 2))


def test_of_a_large_volume_the_page_says_which_slices_are_shown():
    seen = view([], (1, 1, 1), np.array([1, 3]), 4, np.zeros((2, 5, 6), dtype=bool))
    assert (seen["slices"], seen["n_slices"], seen["shape"]) == ([1, 3], 4, [2, 5, 6])


def test_edges_are_named_after_the_patient():
    """Of an axial slice of LPS: the image's left is the patient's right, its upper edge in front."""
    lps = np.zeros((4, 4))
    lps[[2, 1, 0], [0, 1, 2]] = 1  # columns: z, y, x of the array
    assert edges(Grid((3, 3, 3), lps)) == ["R", "L", "A", "P"]
    ras = lps * np.array([[-1], [-1], [1], [1]])
    assert edges(Grid((3, 3, 3), ras)) == ["L", "R", "P", "A"]
    sagittal = lps[:, [2, 0, 1, 3]]
    assert edges(Grid((3, 3, 3), sagittal)) == ["A", "P", "I", "S"]


def layers_with(attention):
    """Of a volume of 2 x 2 x 4 voxels and a model with this attention (n stages, 2, 2, 4)."""
    encoded = SimpleNamespace(uncertainty=lambda grid: np.zeros((4, *grid.shape)), attention=lambda _: attention)
    labels = np.ones((2, 2, 4), dtype=np.uint8)
    volumes = case_views.Volumes(labels[None], labels, None, Grid(labels.shape, np.eye(4)), None)
    return layers_of({"view": case_views.slices_of(volumes, encoded, Structures({"a": (1,)}, False, None))})


def test_attention_is_scaled_by_what_is_inside_the_image():
    """Outside it is 0, which no weight is."""
    weights = np.stack([np.linspace(0.4, 0.5, 8), 1 - np.linspace(0.4, 0.5, 8)]).reshape(2, 1, 2, 4)
    layers = layers_with(np.concatenate((np.zeros((2, 1, 2, 4)), weights), 1))
    opacity = layers["Attention to stage 1"][..., 3]
    assert not opacity[0].any()
    assert opacity[1].min() == 0 < opacity[1].max() < layers["Attention to stage 2"][..., 3].max()


def test_where_no_slice_shown_meets_the_content_there_is_no_attention():
    assert not [name for name in layers_with(np.zeros((2, 2, 2, 4))) if name.startswith("Attention")]


def test_folds_are_numbers_or_all(tmp_path):
    for name in ("fold_0", "fold_all", "fold_0_old", "fold_1"):
        (tmp_path / name).mkdir()
        if name != "fold_1":
            (tmp_path / name / "checkpoint_final.pth").touch()
    assert trained_folds(tmp_path, "checkpoint_final.pth") == ["0", "all"]


def test_surfaces_of_label_maps_lie_where_the_labels_are():
    """A box of 4 x 6 x 8 voxels of 3 x 2 x 1 mm, turned by its direction."""
    labels = np.zeros((10, 12, 16), dtype=np.uint8)
    labels[3:7, 3:9, 4:12] = 1
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[:3, :3] = np.array([[0, 0, 1], [0, -2, 0], [3, 0, 0]])  # columns: z, y, x of the array
    affine[:3, 3] = (5, 6, 7)
    volumes = case_views.Volumes(labels[None], labels, None, Grid(labels.shape, affine), None)
    (trace,) = case_views.surfaces_of(volumes, None, Structures({"box": (1,)}, False, None)).data
    vertices = np.stack([trace.x, trace.y, trace.z], 1)
    low, high = vertices.min(0), vertices.max(0)
    np.testing.assert_allclose(low, [5 + 3.5, 6 - 2 * 8.5, 7 + 3 * 2.5], atol=0.51)
    np.testing.assert_allclose(high, [5 + 11.5, 6 - 2 * 2.5, 7 + 3 * 6.5], atol=0.51)


def test_the_plan_says_when_it_was_edited(tiny_config):
    config = tiny_config(3)
    configuration = {
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [32, 32, 32],
        "batch_size": 2,
        "architecture": {"arch_kwargs": {"strides": [1, 2], "kernel_sizes": [3, 3]}},
    }
    statistics = {"1": {"surface_to_volume_per_mm": 0.4}}
    rows = {row.name: row for row in plan_in_words(configuration, config, statistics, {"1": "vessel"}, 3)}
    assert "(vessel: 10.0 mm, 10.0 voxels" in rows["Patch size S"].reason
    assert rows["Patch size S"].value == "4 x 4 x 4"
    assert "today's rule" not in rows["Patch size S"].reason  # half of 10 voxels, as a power of two, is 4
    assert "today's rule gives 128" in rows["Width of the embeddings d"].reason
    without = {row.name: row for row in plan_in_words(configuration, config, None, {}, 3)}
    assert "vessel" not in without["Patch size S"].reason


def test_an_image_in_2d_is_measured_in_pixels():
    """One pixel away is within the two of the NSD, however large pixels are."""
    truth = np.zeros((1, 12, 12), dtype=np.uint8)
    truth[0, 2:8, 2:8] = 1
    prediction = np.roll(truth, 1, 1)
    volumes = case_views.Volumes(truth[None], prediction, truth, Grid(truth.shape, np.diag([4.0, 4, 4, 1])), None)
    (scores,) = case_views.scores_of(volumes, Structures({"a": (1,)}, False, None)).values()
    assert scores == {"Dice": pytest.approx(5 / 6), "NSD": 1, "size": 36, "true size": 36}
