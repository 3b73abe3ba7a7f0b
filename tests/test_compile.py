"""torch.compile, which nnU-Net uses on GPUs: one graph, compiled once. Nothing is compiled to machine code here."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from nnunetv2_swipe.precision import AMP_VARIABLE
from nnunetv2_swipe.training.point_sampling import sample_points

PRECISIONS = ["off", "bf16"]


@pytest.fixture(params=[(2, (24, 20)), (3, (12, 16, 8))], ids=["2D", "3D"])
def step(request, tiny_config, tiny_network, tiny_input):
    """A network in training, and a function that draws new points and gives its inputs."""
    torch._dynamo.reset()
    dims, size = request.param
    config = tiny_config(dims, dropout=0.1, backbone="Res2Net" if dims == 2 else "PlainConvEncoder")
    x = tiny_input(config, size)

    def draw():
        label = torch.randint(3, (2, 1, *size)).short()
        sample = sample_points(label, config, num_classes=3)
        return x, sample.points, sample.neighbours

    yield tiny_network(config).train(), draw
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_is_one_graph(step, precision, monkeypatch):
    monkeypatch.setenv(AMP_VARIABLE, precision)
    network, draw = step
    explanation = torch._dynamo.explain(network)(*draw())
    assert explanation.graph_break_count == 0, explanation.break_reasons
    assert explanation.graph_count == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_step_is_compiled_anew(step, precision, monkeypatch):
    monkeypatch.setenv(AMP_VARIABLE, precision)
    network, draw = step
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter)
    for _ in range(4):
        compiled(*draw()).patch.sum().backward()
    assert counter.frame_count == 1


def test_validation_between_epochs_compiles_nothing_anew(step):
    network, draw = step
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter)
    frames = []
    for _ in range(3):
        network.train()
        compiled(*draw()).patch.sum().backward()
        network.eval()
        with torch.no_grad():
            compiled(draw()[0])
        frames.append(counter.frame_count)
    assert frames == [2, 2, 2]  # training and the encoder of prediction


def test_prediction_compiles_the_encoder_once(step):
    """What MISE decodes depends on the data: it runs as it is."""
    network, draw = step
    network.eval()
    x = draw()[0]
    expected = network(x)
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected)
    assert counter.frame_count == 1
