"""Augmentation draws the same from the same seed, whatever the process did before."""

import itertools

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise import gaussian_blur
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_swipe.preprocessing.source_coordinates import keep_source_frame
from nnunetv2_swipe.training.augmentation import Repeatable

SIZE = (12, 16, 20)
TURN = (-0.5, 0.5)
SEEDS = range(30)  # a blurred image or changed labels of a previous stage are among them
CLASSES = (1, 2, 3, 4)


def nnunets_transforms(*, cascaded=False):
    """nnU-Net's composition for training."""
    return nnUNetTrainer.get_training_transforms(
        SIZE, TURN, None, (0, 1, 2), False, is_cascaded=cascaded, foreground_labels=CLASSES if cascaded else None
    )


def draw(transforms, seeds=SEEDS, *, cascaded=False):
    """Images that the transforms make of one image, one for each seed; with the labels of a previous stage."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(5, *SIZE, generator=generator)
    labels = torch.zeros(1 + cascaded, *SIZE, dtype=torch.int16)
    for label in CLASSES:
        labels[:, 2 * label : 2 * label + 2, 3:9, 4:12] = label
    drawn = []
    for seed in seeds:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (what nnU-Net's transforms draw from)
        drawn.append(transforms(image=image.clone(), segmentation=labels.clone())["image"])
    return torch.stack(drawn)


@pytest.mark.parametrize("frame", [True, False])
def test_images_do_not_depend_on_a_stopwatch(monkeypatch, frame):
    """nnU-Net's own blur measures two convolutions; one process finds the first faster, another one the second."""

    def transforms():
        return keep_source_frame(nnunets_transforms()) if frame else nnunets_transforms()

    bare, repeatable = [], []
    for power in (2, 0.5):  # each measurement takes longer than the one before, or less long
        ticks = itertools.count(1)
        monkeypatch.setattr(gaussian_blur, "time", lambda ticks=ticks, power=power: next(ticks) ** power)
        bare.append(draw(transforms()))
        repeatable.append(draw(Repeatable(transforms())))
    assert not torch.equal(*bare)
    assert torch.equal(*repeatable)
    torch.testing.assert_close(repeatable[0], bare[0], rtol=0, atol=1e-4)


def test_labels_of_a_previous_stage_do_not_depend_on_earlier_calls():
    """nnU-Net's transforms of them shuffle the order of classes in place, from call to call."""
    bare = nnunets_transforms(cascaded=True)
    repeatable = Repeatable(nnunets_transforms(cascaded=True))
    first, again = ([draw(t, cascaded=True) for t in (bare, repeatable)] for _ in range(2))
    assert first[0].shape[1] == 5 + len(CLASSES)
    assert not torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
