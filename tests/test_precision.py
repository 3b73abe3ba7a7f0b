"""SWIPE_AMP and what it stands for."""

import pytest
import torch

from nnunetv2_swipe.precision import AMP_VARIABLE, amp_dtype, full_precision, network_precision

QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
NATIVE_BFLOAT16 = [(True, True), (True, False), (False, True), (False, False)]
"""Answers to them."""


def pretend(monkeypatch, *answers):
    for name, answer in zip(QUESTIONS, answers, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("value", "expected"), [("off", None), ("OFF", None), ("bf16", torch.bfloat16), ("BF16", torch.bfloat16)]
)
@pytest.mark.parametrize("native", NATIVE_BFLOAT16)
def test_variable_overrides_the_hardware(monkeypatch, device, value, expected, native):
    pretend(monkeypatch, *native)
    monkeypatch.setenv(AMP_VARIABLE, value)
    assert amp_dtype(device) is expected


@pytest.mark.parametrize("value", [None, "auto"])
@pytest.mark.parametrize("native", NATIVE_BFLOAT16)
def test_the_hardware_decides_otherwise(monkeypatch, value, native):
    pretend(monkeypatch, *native)
    if value is None:
        monkeypatch.delenv(AMP_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(AMP_VARIABLE, value)
    assert amp_dtype("cpu") is (torch.bfloat16 if any(native) else None)


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [((7, 5), None, torch.float16), ((8, 0), None, torch.bfloat16), ((9, 0), None, torch.bfloat16),
     ((7, 5), "6.0", torch.bfloat16)],
)  # fmt: skip
def test_a_gpu_computes_in_bfloat16_where_it_has_it(monkeypatch, capability, hip, expected):
    """A GPU that is pretended: nothing runs on it."""
    monkeypatch.setenv(AMP_VARIABLE, "auto")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert amp_dtype("cuda") is expected


def test_float16_is_for_gpus(monkeypatch):
    monkeypatch.setenv(AMP_VARIABLE, "fp16")
    assert amp_dtype("cuda") is torch.float16
    with pytest.raises(ValueError, match="allowed on cpu"):
        amp_dtype("cpu")


def test_a_pytorch_that_does_not_know_the_hardware_computes_in_float32(monkeypatch):
    """nnU-Net allows PyTorch from 2.1 on; the questions came later."""
    for name in QUESTIONS:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setenv(AMP_VARIABLE, "auto")
    assert amp_dtype("cpu") is None


@pytest.mark.parametrize("value", ["", "on", "fp32"])
def test_another_value_is_named_with_what_is_allowed(monkeypatch, value):
    monkeypatch.setenv(AMP_VARIABLE, value)
    with pytest.raises(ValueError, match=rf'{AMP_VARIABLE} is \'{value}\'; allowed on cpu: "auto", "off", "bf16"'):
        amp_dtype("cpu")


@pytest.mark.parametrize(("value", "expected"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_multiplies_in_that_type_and_coordinates_in_float32(monkeypatch, value, expected):
    """Whatever context it is called in: nnU-Net's predictor has one of its own on a GPU."""
    monkeypatch.setenv(AMP_VARIABLE, value)
    a = torch.eye(2)
    for outer in (True, False):
        with torch.autocast("cpu", dtype=torch.float16, enabled=outer):
            with network_precision(a.device):
                assert (a @ a).dtype == expected
                with full_precision(a.device):
                    assert (a @ a).dtype == torch.float32
            assert (a @ a).dtype == (torch.float16 if outer else torch.float32)


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_other_devices_compute_in_float32(monkeypatch, device):
    """They may not know autocast at all."""
    monkeypatch.setenv(AMP_VARIABLE, "bf16")
    assert amp_dtype(device) is None
    a = torch.eye(2)
    with network_precision(torch.device(device)), full_precision(torch.device(device)):
        assert (a @ a).dtype == torch.float32
