"""Trainers: what a user names after -tr."""

from nnunetv2_swipe.trainers.ablations import (
    SwIPETrainer_interpolatedStages,
    SwIPETrainer_noCascade,
    SwIPETrainer_noGlobalConditioning,
    SwIPETrainer_noImageDecoder,
    SwIPETrainer_noMEA,
    SwIPETrainer_noRFB,
    SwIPETrainer_noSourceCoordinates,
    SwIPETrainer_noSPO,
    SwIPETrainer_unweightedPoints,
)
from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer

__all__ = [
    "SwIPETrainer",
    "SwIPETrainer_interpolatedStages",
    "SwIPETrainer_noCascade",
    "SwIPETrainer_noGlobalConditioning",
    "SwIPETrainer_noImageDecoder",
    "SwIPETrainer_noMEA",
    "SwIPETrainer_noRFB",
    "SwIPETrainer_noSPO",
    "SwIPETrainer_noSourceCoordinates",
    "SwIPETrainer_unweightedPoints",
]
