"""Whole numbers of environment variables: taken as they are meant, or named."""

import pytest

from nnunetv2_swipe.environment import whole_number
from nnunetv2_swipe.planners import SwIPEPlanner

NAME = "SWIPE_TEST_NUMBER"


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("12", 12), (" 5 ", 5), ("007", 7), ("999999999", 999_999_999)])
def test_a_whole_number_is_read(monkeypatch, text, number):
    monkeypatch.setenv(NAME, text)
    assert whole_number(NAME, 3, lowest=0) == number


def test_what_is_not_set_is_the_default(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    assert whole_number(NAME, 3, lowest=1) == 3


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "ten", "", " ", "²", "٣", "1_000", "1e3", "nan", "inf", "9" * 10, "9" * 5000]
)
def test_anything_else_is_named(monkeypatch, text):
    monkeypatch.setenv(NAME, text)
    with pytest.raises(
        ValueError, match=f"^The environment variable {NAME} is '.*'; it must be a whole number from 1 to"
    ):
        whole_number(NAME, 3, lowest=1)


@pytest.mark.parametrize("text", ["0", "many"])
def test_planning_names_a_number_of_threads_that_is_none(monkeypatch, text):
    """nnU-Net's memory estimate takes it from a variable of the data loading."""
    monkeypatch.setenv("nnUNet_n_proc_DA", text)
    with pytest.raises(ValueError, match=f"nnUNet_n_proc_DA is '{text}'; it must be a whole number from 1"):
        SwIPEPlanner.static_estimate_VRAM_usage()
