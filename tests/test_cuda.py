"""What only a GPU shows: kernels, precisions, compilation, and where a step does not wait for the device."""

import pytest
import torch

from nnunetv2_swipe.precision import AMP_VARIABLE
from nnunetv2_swipe.training.batch_loss import BatchLoss, capture_cuda_graph
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.point_sampling import PointSample, sample_points

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

SIZES = {2: (24, 20), 3: (12, 16, 8)}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """No TensorFloat-32: results are compared with the CPU's."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def setting(request, tiny_config, tiny_network, tiny_input):
    """Configuration, network and input on the GPU, labels."""
    dims = request.param
    config = tiny_config(dims, backbone="Res2Net" if dims == 2 else "PlainConvEncoder")
    label = torch.randint(3, (2, 1, *SIZES[dims]), generator=torch.Generator().manual_seed(2)).short()
    return config, tiny_network(config).cuda(), tiny_input(config, SIZES[dims]).cuda(), label.cuda()


def draw(config, label):
    torch.manual_seed(0)
    return sample_points(label, config, num_classes=3)


def loss_of(config, network, x, sample):
    return SwIPELoss(config, num_classes=3).points(network(x, sample.points, sample.neighbours), sample)


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()))


def test_dense_logits_are_those_of_the_cpu(setting):
    _, network, x, _ = setting
    network.eval()
    with torch.no_grad():
        found = network(x).cpu()
        torch.testing.assert_close(found, network.cpu()(x.cpu()), atol=1e-4, rtol=1e-4)


def test_training_loss_and_gradients_are_those_of_the_cpu(setting):
    config, network, x, label = setting
    network.train()
    sample = draw(config, label.cpu())
    loss = loss_of(config, network, x, PointSample(*(t.cuda() for t in sample)))
    found = [loss.cpu(), *(g.cpu() for g in gradients(loss, network))]
    network.cpu()
    loss = loss_of(config, network, x.cpu(), sample)
    torch.testing.assert_close(found, [loss, *gradients(loss, network)], atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("decoding", ["own", "blended"])
def test_mise_refined_everywhere_is_the_dense_output(setting, tiny_network, decoding):
    config, _, x, _ = setting
    dense, refined = (
        tiny_network(config.replace(decoding=decoding, mise_levels=levels, mise_margin=100.0)).cuda().eval()
        for levels in (0, 2)
    )
    with torch.no_grad():
        torch.testing.assert_close(refined(x), dense(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_reduced_precision_trains_as_float32_does(setting, precision, monkeypatch):
    config, network, x, label = setting
    sample = draw(config, label)
    expected = loss_of(config, network.train(), x, sample).item()
    monkeypatch.setenv(AMP_VARIABLE, precision)
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(config, network, x, sample)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(expected, rel=0.02)
    assert losses[0] != expected
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("precision", ["off", "auto"])
def test_points_loss_and_backward_pass_do_not_wait_for_the_device(setting, precision, monkeypatch):
    monkeypatch.setenv(AMP_VARIABLE, precision)
    config, network, x, label = setting
    loss_of(config, network, x, draw(config, label)).backward()  # tables that later steps find
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of(config, network, x, draw(config, label)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_for_the_device_it_computes_the_same(setting):
    torch._dynamo.reset()
    config, network, x, label = setting
    network.train()
    sample = draw(config, label)
    results = []
    for called in (network, torch.compile(network)):
        loss = loss_of(config, called, x, sample)
        results.append([loss, *gradients(loss, network)])
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-2)
    torch._dynamo.reset()


@pytest.mark.parametrize("changes", [{}, {"n_spo": 0, "dropout": 0.1}, {"norm_op": "BatchNorm"}], ids=str)
@pytest.mark.parametrize("precision", ["off", "auto"])
def test_cuda_graph_trains_as_without(setting, precision, changes, tiny_network, monkeypatch):
    monkeypatch.setenv(AMP_VARIABLE, precision)
    config, _, x, label = setting
    config = config.replace(**changes)
    network = tiny_network(config).cuda()
    batches = [(x, label), (x.flip(-1), label.flip(-1)), (x, label)]
    batch_loss = BatchLoss(network, SwIPELoss(config, num_classes=3))

    def train():
        """Losses and final state of three steps, each of other points, with dense predictions between."""
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = batch_loss(*batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            network.eval()
            with torch.no_grad():
                network(x)
            network.train()
        return torch.tensor(losses), [t.detach().clone() for t in network.state_dict().values()]

    start = {k: v.clone() for k, v in network.train().state_dict().items()}
    expected = train()
    network.load_state_dict(start)
    torch.manual_seed(5)
    drawn = torch.rand(3, device="cuda")
    torch.manual_seed(5)
    capture_cuda_graph(batch_loss, torch.zeros_like(x), torch.zeros_like(label))
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
    torch.testing.assert_close(network.state_dict(), start, atol=0, rtol=0)
    tolerance = 1e-4 if precision == "off" else 2e-2
    torch.testing.assert_close(train(), expected, atol=tolerance, rtol=tolerance)
    assert batch_loss(x, label).item() != batch_loss(x, label).item()  # other points


@pytest.mark.parametrize(("tile", "size"), [((8, 12, 8), (13, 15, 20)), ((12, 8), (3, 17, 11))], ids=["3D", "2D"])
@pytest.mark.parametrize("decoding", ["own", "blended"])
def test_an_image_is_decoded_as_on_the_cpu(tiled, tile, size, decoding):
    positions = [torch.arange(n).float() for n in size]
    points = torch.cartesian_prod(*positions) * 0.9
    found = []
    for device in ("cuda", "cpu"):
        image = tiled(tile, size, mirrored=(0, 1), folds=2, device=device, decoding=decoding, mise_levels=1)
        box = [p[b] for p, b in zip(positions, image.blocks(positions)[0], strict=True)]
        found.append(
            [
                image.decode_lattice(box).cpu(),
                image.decode_lattice(box, labels_only=True).cpu(),
                image.decode(points).cpu(),
                image.variance_lattice(box).cpu(),
            ]
        )
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
