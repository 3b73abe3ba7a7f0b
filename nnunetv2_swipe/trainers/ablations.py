"""SwIPETrainer with one component switched off each.

The rows of the paper's Table 3 (left), and the paper's form of what is done otherwise here: stages and points.
"""

from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer


class SwIPETrainer_noSPO(SwIPETrainer):
    """Without stochastic patch overreach: no point is decoded by a neighbouring patch."""

    config_changes = {"n_spo": 0}


class SwIPETrainer_noMEA(SwIPETrainer):
    """Without multi-stage embedding attention: the stages' embeddings are added."""

    config_changes = {"multi_stage_attention": False}


class SwIPETrainer_noRFB(SwIPETrainer):
    """Without receptive field blocks: a 1x1 convolution per stage."""

    config_changes = {"rfb": False}


class SwIPETrainer_noCascade(SwIPETrainer):
    """Without the cascade: finer stages are not added to coarser ones."""

    config_changes = {"cascade": False}


class SwIPETrainer_interpolatedStages(SwIPETrainer):
    """The paper's way of stages to the patch grid: pooled to the coarsest stage's grid, interpolated from there."""

    config_changes = {"pool_to_patch_grid": False}


class SwIPETrainer_noSourceCoordinates(SwIPETrainer):
    """Without p^S: the decoder does not know where the crop lies in the image."""

    config_changes = {"source_coordinates": False}


class SwIPETrainer_noGlobalConditioning(SwIPETrainer):
    """The patch decoder sees neither p^I nor z^I."""

    config_changes = {"global_conditioning": False}


class SwIPETrainer_noImageDecoder(SwIPETrainer):
    """Without the image decoder D^I and its loss."""

    config_changes = {"image_decoder_features": []}


class SwIPETrainer_unweightedPoints(SwIPETrainer):
    """The paper's losses: every point counts alike, however many voxels it stands for."""

    config_changes = {"point_weight_exponent": 0.0}
