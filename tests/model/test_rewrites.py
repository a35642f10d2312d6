"""Every rewrite against the network as trained, and all of them together."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmfnet_fast.engines import shipped
from dmfnet_fast.errors import MissingExtraError
from dmfnet_fast.model import DMFNet, ModelConfig, load_model, preset
from dmfnet_fast.model.rewrites import (
    PassByPass,
    Precision,
    avoid_concatenations,
    drop_unused_blocks,
    fold_noise_levels,
    optimize,
    order_channels_last,
    split_attention,
    upsample_once,
    upsample_transposed,
)

from ..rules import rule_tensor

# The largest difference that rounding makes here is 3e-6.
EXACT = 2e-5


def by_rule(name: str) -> DMFNet:
    """A network whose weights are made as the golden ones are."""
    model = DMFNet(preset(name))
    state = {key: rule_tensor(key.split(".", 1)[1], list(tensor.shape)) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module", params=["shipped", "by rule"])
def model(request: pytest.FixtureRequest) -> DMFNet:
    return load_model(shipped()["tiny"]) if request.param == "shipped" else by_rule("tiny")


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 1, 64, 96, generator=generator) * 2 - 1
    return a, b, torch.randn(3, 2, 64, 96, generator=generator)


@pytest.fixture(scope="module")
def expected(model: DMFNet, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model(*inputs)


def error(net: torch.nn.Module, inputs: tuple[torch.Tensor, ...], expected: torch.Tensor) -> float:
    with torch.no_grad():
        fused = net(*inputs)
    assert fused.dtype == torch.float32
    assert fused.shape == expected.shape
    return (fused - expected).abs().max().item()


def nothing(net: PassByPass) -> None:
    """The passes in order, and nothing else."""


def fold_and_avoid(net: PassByPass) -> None:
    fold_noise_levels(net)
    avoid_concatenations(net)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "rewrite",
    [
        nothing,
        fold_noise_levels,
        upsample_transposed,
        fold_and_avoid,
        upsample_once,
        split_attention,
        order_channels_last,
    ],
)
def test_rewrite_alone(
    rewrite: Callable[[PassByPass], None],
    together: bool,
    model: DMFNet,
    inputs: tuple[torch.Tensor, ...],
    expected: torch.Tensor,
) -> None:
    net = PassByPass(copy.deepcopy(model), together).eval()
    rewrite(net)
    assert error(net, inputs, expected) <= EXACT


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kernels", [False, True])
def test_one_timestep(together: bool, kernels: bool, inputs: tuple[torch.Tensor, ...]) -> None:
    """All rewrites, and the operators of the GPU (here by their definitions), of a network with a single pass."""
    model = by_rule("turbo")
    a, b, noise = inputs
    with torch.no_grad():
        expected = model(a, b, noise[:1])
    assert error(optimize(model, together=together, kernels=kernels), (a, b, noise[:1]), expected) <= EXACT


def test_dropping_unused_blocks_changes_nothing(
    model: DMFNet, inputs: tuple[torch.Tensor, ...], expected: torch.Tensor
) -> None:
    smaller = copy.deepcopy(model)
    drop_unused_blocks(smaller)
    dropped = set(model.state_dict()) - set(smaller.state_dict())
    assert {name.split(".")[1] for name in dropped if "denoiser.ups" not in name} == {"final_conv"}
    assert len({name.split(".")[2] for name in dropped if "denoiser.ups" in name}) == 2
    assert error(smaller, inputs, expected) == 0.0


def test_concatenations_that_stay() -> None:
    net = optimize(DMFNet(preset("tiny")))
    kinds = [type(module).__name__ for module in net.denoiser.ups]
    assert kinds.count("FixedLevelBlock") == 2, "of 2C with C channels, whose groups straddle the seam"
    assert kinds.count("JoinedBlock") == 11
    assert kinds.count("TransposedUpsample") == 4


def test_channels_last() -> None:
    net = optimize(DMFNet(preset("tiny")))
    weights = [parameter for parameter in net.parameters() if parameter.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not all(weight.is_contiguous() for weight in weights)


@pytest.mark.parametrize("kernels", [False, True])
def test_all(kernels: bool, model: DMFNet, inputs: tuple[torch.Tensor, ...], expected: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = optimize(model, kernels=kernels)
    assert error(net, inputs, expected) <= EXACT
    assert not any(parameter.requires_grad for parameter in net.parameters())
    after = model.state_dict()
    assert list(after) == list(before), "the model is left as it was"
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# Largest and mean difference to float32; the picture's grey levels are 1/127.5 apart.
HALF = {"bfloat16": (0.1, 0.01), "float16": (0.015, 0.0015)}


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(
    precision: Precision, kernels: bool, model: DMFNet, inputs: tuple[torch.Tensor, ...], expected: torch.Tensor
) -> None:
    largest, mean = HALF[precision]
    net = optimize(model, precision, kernels=kernels)
    with torch.no_grad():
        difference = (net(*inputs) - expected).abs()
    assert difference.max() <= largest
    assert difference.mean() <= mean
    kept = {name for name, p in net.named_parameters() if p.dtype == torch.float32}
    assert kept == {"fusion.rgb_decode1.conv.weight", "fusion.rgb_decode1.conv.bias"}


def test_kernels_with_wider_attention(inputs: tuple[torch.Tensor, ...]) -> None:
    """Than the kernel takes: PyTorch's own."""
    torch.manual_seed(0)
    model = DMFNet(ModelConfig(channels=160, norm_groups=40)).eval()
    small = [tensor[..., :64, :64] for tensor in (inputs[0][:1], inputs[1][:1], inputs[2])]
    with torch.no_grad():
        assert (optimize(model, kernels=True)(*small) - model(*small)).abs().max() <= EXACT


@pytest.mark.parametrize("kernels", [False, True])
def test_on_the_device_of_the_model(kernels: bool) -> None:
    net = optimize(DMFNet(preset("tiny")).to("meta"), kernels=kernels)
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}


def test_kernels_write_no_concatenation() -> None:
    """Nothing is copied side by side."""
    image, noise = torch.empty(1, 1, 64, 64, device="meta"), torch.empty(3, 2, 64, 64, device="meta")
    with torch.device("meta"):
        net = optimize(DMFNet(preset("base")), kernels=True)
    graph = torch.export.export(net, (image, image, noise)).graph
    targets = {str(node.target) for node in graph.nodes}
    assert not {name for name in targets if "cat" in name or "stack" in name or "group_norm.default" in name}
    assert "dmfnet.group_norm_silu.default" in targets


def test_kernels_need_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"triton is not installed: pip install 'dmfnet-fast\[gpu\]'"):
        optimize(DMFNet(preset("tiny")), kernels=True)


def gflop(net: torch.nn.Module, size: int) -> float:
    image, noise = torch.empty(1, 1, size, size, device="meta"), torch.empty(3, 2, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image, image, noise)
    return counter.get_total_flops() / 1e9


def test_arithmetic() -> None:
    """Multiply-adds of base at 256x256, counted as two.

    Transposed upsampling saves 87 GFLOP, and projecting before the fusion's upsampling 2.5.
    """
    with torch.device("meta"):
        model = DMFNet(preset("base")).eval()
        assert gflop(model, 256) == pytest.approx(1705, abs=1)
        assert gflop(optimize(model), 256) == pytest.approx(1615.8, abs=0.1)
