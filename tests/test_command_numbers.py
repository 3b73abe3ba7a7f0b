"""Numbers on the command line and in nnU-Net's variables: taken, or named before a model is looked for."""

import pytest
from nnunet_helpers import call_command

from nnunetv2_swipe.commands.mesh import main as mesh_main
from nnunetv2_swipe.commands.predict import main as predict_main
from nnunetv2_swipe.inference.output_grid import OutputGrid

REQUIRED = ("-i", "images", "-o", "labels", "-d", "Dataset001_None", "-c", "3d_fullres")


def errors(capsys, function, *arguments):
    """The code and the last line with which a command ends."""
    with pytest.raises(SystemExit) as end:
        call_command("nnUNetv2_swipe", *arguments, function=function)
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("variable", ["nnUNet_npp", "nnUNet_nps"])
@pytest.mark.parametrize("value", ["abc", "-1", "2.5", "²", ""])
def test_a_variable_that_is_no_number_is_named_but_not_in_the_help(variable, value, monkeypatch, capsys):
    monkeypatch.setenv(variable, value)
    code, message = errors(capsys, predict_main, *REQUIRED)
    assert code == 1
    assert f"The environment variable {variable} is {value!r}; it must be a whole number from 0" in message
    with pytest.raises(SystemExit, match="0"):
        call_command("nnUNetv2_swipe_predict", "--help", function=predict_main)


def test_a_flag_wins_over_the_variable(monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_npp", "abc")
    _, message = errors(capsys, predict_main, *REQUIRED, "-npp", 1, "-nps", 1)
    assert "nnUNet_npp" not in message


@pytest.mark.parametrize("fold", ["abc", "²", "-1", "1.5", ""])
def test_what_is_no_fold_is_named(fold, capsys):
    code, message = errors(capsys, mesh_main, *REQUIRED, f"-f={fold}")
    assert code == 2
    assert f"argument -f: {fold!r} is no fold; a fold is a number from 0, or all" in message


@pytest.mark.parametrize(
    "values",
    [{"size": (10**400, 4, 4)}, {"spacing": (float("nan"), 1, 1)}, {"spacing": (1e308, 1, 1)}, {"size": (0, 4)}],
)
def test_numbers_of_a_grid_that_are_none_are_named(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"The {name} of the output is .* above 0, at most 1,000,000"):
        OutputGrid(**values)


@pytest.mark.parametrize("variable", ["nnUNet_def_n_proc", "nnUNet_n_proc_DA"])
def test_a_variable_that_nnunet_reads_without_naming_it_is_named(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "abc")
    code, message = errors(capsys, mesh_main, *REQUIRED)
    assert code == 1
    assert f"The environment variable {variable} is 'abc'" in message
