"""SWIPE_AMP and what it stands for."""

from contextlib import nullcontext

import pytest
import torch

from nnunetv2_swipe.precision import AMP_VARIABLE, cpu_amp_dtype, full_precision, network_precision

QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
NATIVE_BFLOAT16 = [(True, True), (True, False), (False, True), (False, False)]
"""Answers to them."""


def pretend(monkeypatch, *answers):
    for name, answer in zip(QUESTIONS, answers, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)


@pytest.fixture(autouse=True)
def no_cache():
    cpu_amp_dtype.cache_clear()
    yield
    cpu_amp_dtype.cache_clear()


@pytest.mark.parametrize(
    ("value", "expected"), [("off", None), ("OFF", None), ("bf16", torch.bfloat16), ("BF16", torch.bfloat16)]
)
@pytest.mark.parametrize("native", NATIVE_BFLOAT16)
def test_variable_overrides_the_hardware(monkeypatch, value, expected, native):
    pretend(monkeypatch, *native)
    monkeypatch.setenv(AMP_VARIABLE, value)
    assert cpu_amp_dtype() is expected


@pytest.mark.parametrize("value", [None, "auto"])
@pytest.mark.parametrize("native", NATIVE_BFLOAT16)
def test_the_hardware_decides_otherwise(monkeypatch, value, native):
    pretend(monkeypatch, *native)
    if value is None:
        monkeypatch.delenv(AMP_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(AMP_VARIABLE, value)
    assert cpu_amp_dtype() is (torch.bfloat16 if any(native) else None)


def test_a_pytorch_that_does_not_know_the_hardware_computes_in_float32(monkeypatch):
    """nnU-Net allows PyTorch from 2.1 on; the questions came later."""
    for name in QUESTIONS:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setenv(AMP_VARIABLE, "auto")
    assert cpu_amp_dtype() is None


@pytest.mark.parametrize("value", ["", "on", "fp16"])
def test_another_value_is_named_with_what_is_allowed(monkeypatch, value):
    monkeypatch.setenv(AMP_VARIABLE, value)
    with pytest.raises(ValueError, match=rf'{AMP_VARIABLE} is \'{value}\'; allowed: "auto", "bf16", "off"'):
        cpu_amp_dtype()


@pytest.mark.parametrize(("value", "expected"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_multiplies_in_that_type_and_coordinates_in_float32(monkeypatch, value, expected):
    monkeypatch.setenv(AMP_VARIABLE, value)
    a = torch.eye(2)
    with network_precision(a.device):
        assert (a @ a).dtype == expected
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
    assert (a @ a).dtype == torch.float32


def test_the_variable_is_of_the_cpu_only(monkeypatch):
    """On a GPU nnU-Net's own autocast decides; other devices may not know autocast at all."""
    monkeypatch.setenv(AMP_VARIABLE, "bf16")
    assert isinstance(network_precision(torch.device("cuda")), nullcontext)
    assert isinstance(full_precision(torch.device("mps")), nullcontext)
