"""Checks of a checkpoint before it is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig


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
    if "plans" in trained:
        config: Any = network.config
        require_same_network(trained["plans"], trained["configuration"], config, f"The checkpoint {filename}")


def require_same_network(plans: Mapping[str, Any], configuration: str, config: SwIPEConfig, subject: str) -> None:
    """RuntimeError if a plan that something was trained with is of another network than the settings now.

    Args:
        plans: nnU-Net's plan with SwIPE's block.
        configuration: Name of the configuration.
        config: The settings now.
        subject: What was trained; the message begins with it.
    """
    block = PlansManager(dict(plans)).get_configuration(configuration).configuration.get(PLAN_KEY, {})
    key = config.differs_from(block)
    if key is not None:
        raise RuntimeError(
            f"{subject} was trained with {key!r} {block[key]} in the {PLAN_KEY!r} block of the plan, which now says "
            f"{config.to_dict()[key]}. Set it back, or delete what was trained and begin anew."
        )
