"""Checks of a checkpoint before it is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_swipe.config import PLAN_KEY

_NOT_OF_THE_NETWORK = frozenset(
    (
        "dropout", "n_points", "background_share", "boundary_radius", "point_weight_exponent", "n_spo",
        "spo_connectivity", "patch_loss_weight", "spo_loss_weight", "embedding_loss_weight", "initial_lr",
        "weight_decay", "warmup_iterations", "mise_levels", "mise_margin", "decoding",
    )
)  # fmt: skip
"""Settings that may change while a network is trained, or afterwards."""


def read_checkpoint(filename: str) -> dict[str, Any]:
    """A checkpoint of nnU-Net, on the CPU.

    Raises:
        OSError: There is no such file, or no access to it.
        RuntimeError: It is damaged, or not a checkpoint.
    """
    try:
        checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
    except (OSError, MemoryError, ImportError):  # no fault of the file
        raise
    except Exception as e:
        raise RuntimeError(
            f"The checkpoint {filename} cannot be read ({e}). It is damaged or was cut off while being written. Move "
            "it away: --c goes on from the next of checkpoint_final.pth, checkpoint_latest.pth and checkpoint_best.pth."
        ) from e
    if "network_weights" not in checkpoint:
        raise RuntimeError(
            f"{filename} is not a checkpoint of nnU-Net: it holds no 'network_weights'. Move it away, or put the "
            "checkpoint there."
        )
    return checkpoint


def require_fit(checkpoint: Mapping[str, Any], network: nn.Module, filename: str) -> None:
    """RuntimeError if a checkpoint's tensors, or settings of its network, are not the network's, naming the first."""
    network = getattr(network, "module", network)
    network = getattr(network, "_orig_mod", network)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    found = {k.removeprefix("module."): tuple(v.shape) for k, v in checkpoint["network_weights"].items()}
    for key in [*expected, *found]:
        there, here = found.get(key, "none (missing)"), expected.get(key, "none (missing)")
        if there != here:
            raise RuntimeError(
                f"The checkpoint {filename} does not fit the plan's network: {key} has shape {there} in the checkpoint "
                f"and {here} in the network. Was the {PLAN_KEY!r} block of the plan changed after training?"
            )
    trained = checkpoint.get("init_args", {})
    if "plans" not in trained:
        return
    configuration = PlansManager(trained["plans"]).get_configuration(trained["configuration"]).configuration
    config: Any = network.config
    for key, here in config.to_dict().items():
        there = configuration.get(PLAN_KEY, {}).get(key, here)
        if there != here and key not in _NOT_OF_THE_NETWORK:
            raise RuntimeError(
                f"The checkpoint {filename} was trained with {key!r} {there} in the {PLAN_KEY!r} block of the plan, "
                f"which now says {here}. Set it back, or train anew."
            )
