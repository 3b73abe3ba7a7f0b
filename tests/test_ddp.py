"""Training on several devices, as nnU-Net does it with -num_gpus, here on two processes of the CPU."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.coordinates import source_channels
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.point_sampling import sample_points

PROCESSES, STEPS, CLASSES, SIZE = 2, 3, 3, (8, 8, 8)


def make_network(config):
    torch.manual_seed(0)
    return SwIPENet(config, 1, CLASSES)


def half_loss(network, config, step, rank):
    """Loss of the part of a batch that one process gets; the points depend on step and process."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    image = torch.randn(1, 1, *SIZE, generator=generator)
    target = torch.randint(CLASSES, (1, 1, *SIZE), generator=generator)
    torch.manual_seed(100 * step + rank)
    sample = sample_points(target, config, num_classes=CLASSES)
    data = torch.cat((torch.from_numpy(source_channels(SIZE))[None], image), 1)
    outputs = network(data, sample.points, sample.neighbours)
    return SwIPELoss(config, num_classes=CLASSES).points(outputs, sample)


def train(network, config, ranks):
    """Steps on the mean gradient over the ranks given; with DistributedDataParallel that is over all."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        for rank in ranks:
            (half_loss(network, config, step, rank) / len(ranks)).backward()
        optimizer.step()


def train_in_process(rank, block, folder):
    """What each process does; nnU-Net wraps the network without looking for unused parameters."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=PROCESSES, rank=rank)
    config = SwIPEConfig.from_dict(block)
    network = DistributedDataParallel(make_network(config))
    train(network, config, [rank])
    torch.save(network.module.state_dict(), f"{folder}/weights_{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch without gloo")
@pytest.mark.parametrize("changes", [{}, {"n_spo": 0, "image_decoder_features": [], "multi_stage_attention": False}])
def test_two_processes_step_as_one_on_both_halves(tiny_config, tmp_path, monkeypatch, changes):
    if Path("/sys/class/net/lo").exists():
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not resolve
    config = tiny_config(**changes)
    mp.spawn(train_in_process, (config.to_dict(), str(tmp_path)), nprocs=PROCESSES)
    first, second = (torch.load(tmp_path / f"weights_{rank}.pth") for rank in range(PROCESSES))
    torch.testing.assert_close(second, first, rtol=0, atol=0)

    network = make_network(config)
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train(network, config, range(PROCESSES))
    torch.testing.assert_close(first, dict(network.state_dict()), rtol=1e-4, atol=1e-5)
    assert all(not torch.equal(first[name], initial[name]) for name in first)
