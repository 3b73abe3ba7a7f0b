"""Checks of a checkpoint before it is loaded."""

import torch
from torch import nn

from nnunetv2_swipe.config import PLAN_KEY


def check_checkpoint(filename: str, network: nn.Module) -> None:
    """RuntimeError if a checkpoint is damaged or its tensors differ from the network's, naming the first."""
    try:
        checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
    except Exception as e:
        raise RuntimeError(
            f"The checkpoint {filename} cannot be read ({e}). It is damaged or was cut off while being written; use "
            "another one (checkpoint_best.pth) or train without --c."
        ) from e
    if "network_weights" not in checkpoint:
        raise RuntimeError("The file is not a checkpoint of nnU-Net: it holds no 'network_weights'.")
    network = getattr(network, "module", network)
    network = getattr(network, "_orig_mod", network)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    found = {k.removeprefix("module."): tuple(v.shape) for k, v in checkpoint["network_weights"].items()}
    for key in [*expected, *found]:
        there, here = found.get(key, "none (missing)"), expected.get(key, "none (missing)")
        if there != here:
            raise RuntimeError(
                f"The checkpoint does not fit the plan's network: {key} has shape {there} in the checkpoint and {here} "
                f"in the network. Was the {PLAN_KEY!r} block of the plan changed after training?"
            )
