"""Every rewrite, and all of them together, against the trained network."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.engines import shipped
from dmfnet_fast.errors import MissingExtraError
from dmfnet_fast.model import DMFNet, ModelConfig, Student, StudentConfig, load_model, preset
from dmfnet_fast.model import fused as fused_module
from dmfnet_fast.model.inference import DTYPES, optimize
from dmfnet_fast.model.rewrites import (
    ExactNorm,
    PassByPass,
    avoid_concatenations,
    drop_unused_blocks,
    fold_noise_levels,
    order_channels_last,
    split_attention,
    upsample_once,
    upsample_transposed,
)
from dmfnet_fast.precision import FloatPrecision
from kernels.convolution import convolution
from kernels.launch import assumed
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs, run_model

# Rounding errors reach 3e-6 in these tests.
EXACT = 2e-5


@pytest.fixture(scope="module", params=["shipped", "synthetic"])
def model(request: pytest.FixtureRequest) -> DMFNet:
    model = load_model(shipped()["turbo"]) if request.param == "shipped" else model_by_rule(preset("tiny"))
    assert isinstance(model, DMFNet)
    return model


@pytest.fixture(scope="module")
def inputs(model: DMFNet) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in random_inputs(model.config, pairs=2).items()}


@pytest.fixture(scope="module")
def expected(model: DMFNet, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)


def error(net: torch.nn.Module, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    with torch.no_grad():
        fused = net(**inputs)
    assert fused.dtype == torch.float32
    assert fused.shape == expected.shape
    return (fused - expected).abs().max().item()


def no_rewrite(net: PassByPass) -> None:
    """Leave the network as it is, to test `PassByPass` alone."""


def fold_and_avoid(net: PassByPass) -> None:
    fold_noise_levels(net)
    avoid_concatenations(net)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "rewrite",
    [
        no_rewrite,
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
    inputs: dict[str, torch.Tensor],
    expected: torch.Tensor,
) -> None:
    net = PassByPass(copy.deepcopy(model), together).eval()
    rewrite(net)
    assert error(net, inputs, expected) <= EXACT


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("interval", [False, True])
def test_one_timestep(together: bool, kernels: bool, noise: bool, interval: bool) -> None:
    """All rewrites, and the GPU's operators (here their references), for a network with a single timestep."""
    config = ModelConfig(channels=16, norm_groups=4, timesteps=(5,), noise=noise, interval=interval)
    model = model_by_rule(config)
    given = random_inputs(config, pairs=2)
    net = optimize(model, together=together, kernels=kernels)
    assert np.abs(run_model(net, given) - run_model(model, given)).max() <= EXACT


def test_without_noise_the_images_are_only_converted() -> None:
    """Before the first convolution, the images are converted to its precision, and nothing is computed."""
    config = SMALL["no noise"]
    net = optimize(model_by_rule(config), "float16", kernels=True)
    given = {name: torch.tensor(array) for name, array in random_inputs(config).items()}
    targets = [str(node.target) for node in torch.export.export(net, (), given).graph.nodes if node.op != "placeholder"]
    before = targets[: targets.index("aten.conv2d.default")]
    computing = [name for name in before if not re.search(r"cat|_to_copy|\.to\.|_assert", name)]
    assert not computing
    assert not any("diffuse" in name for name in targets)


@pytest.mark.parametrize(("precision", "largest"), [("float32", 0.0), ("float16", 0.01), ("bfloat16", 0.1)])
def test_student(precision: FloatPrecision, largest: float) -> None:
    """Only the layout and the precision of a student's weights change."""
    config = SMALL["student"]
    model, given = model_by_rule(config), random_inputs(config)
    net = optimize(model, precision)
    assert isinstance(net, Student)
    assert {p.dtype for p in net.parameters()} == {DTYPES[precision]}
    assert net.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.requires_grad for p in net.parameters())
    fused = run_model(net, given)
    assert fused.dtype == np.float32
    assert np.abs(fused - run_model(model, given)).max() <= max(largest, EXACT)


def test_dropping_unused_blocks_changes_nothing(
    model: DMFNet, inputs: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    smaller = copy.deepcopy(model)
    drop_unused_blocks(smaller)
    dropped = set(model.state_dict()) - set(smaller.state_dict())
    assert {name.split(".")[1] for name in dropped if "denoiser.ups" not in name} == {"final_conv"}
    assert len({name.split(".")[2] for name in dropped if "denoiser.ups" in name}) == 2
    assert error(smaller, inputs, expected) == 0.0


def test_remaining_concatenations() -> None:
    net = optimize(DMFNet(DMFNET_PRESETS["tiny"]))
    assert isinstance(net, PassByPass)
    kinds = [type(module).__name__ for module in net.denoiser.ups]
    assert kinds.count("FixedLevelBlock") == 2, "where 2C and C channels meet, a group has channels of both"
    assert kinds.count("JoinedBlock") == 11
    assert kinds.count("TransposedUpsample") == 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_exact_norm(layout: torch.memory_format) -> None:
    """With a mean of 50 standard deviations, PyTorch's GroupNorm errs by 0.01 for channels-last tensors on a CPU."""
    generator = torch.Generator().manual_seed(0)
    x = (50 + torch.randn(2, 24, 40, 48, generator=generator)).contiguous(memory_format=layout)
    norm = ExactNorm(6, 24)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    with torch.no_grad():
        parameters = norm.weight.double(), norm.bias.double()
        expected = torch.nn.functional.group_norm(x.double(), 6, *parameters, norm.eps)
        actual = norm(x)
    assert actual.is_contiguous(memory_format=layout)
    # float32's spacing at 50 is 4e-6.
    assert (actual.double() - expected).abs().max() <= 3e-5


def test_exported_graphs_have_plain_norms() -> None:
    norm = ExactNorm(6, 24)
    program = torch.export.export(norm, (torch.zeros(1, 24, 8, 8),))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [torch.ops.aten.group_norm.default]


def test_channels_last() -> None:
    net = optimize(DMFNet(DMFNET_PRESETS["tiny"]))
    weights = [parameter for parameter in net.parameters() if parameter.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not all(weight.is_contiguous() for weight in weights)


@pytest.mark.parametrize("kernels", [False, True])
def test_all_rewrites(kernels: bool, model: DMFNet, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = optimize(model, kernels=kernels)
    assert error(net, inputs, expected) <= EXACT
    assert not any(parameter.requires_grad for parameter in net.parameters())
    after = model.state_dict()
    assert list(after) == list(before), "the model is not changed"
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# Largest and mean difference from float32; gray levels are 1/127.5 apart.
HALF = {"bfloat16": (0.1, 0.01), "float16": (0.015, 0.0015)}


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(
    precision: FloatPrecision, kernels: bool, model: DMFNet, inputs: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    largest, mean = HALF[precision]
    net = optimize(model, precision, kernels=kernels)
    with torch.no_grad():
        difference = (net(**inputs) - expected).abs()
    assert difference.max() <= largest
    assert difference.mean() <= mean
    kept = {name for name, p in net.named_parameters() if p.dtype == torch.float32}
    assert kept == {"fusion.rgb_decode1.conv.weight", "fusion.rgb_decode1.conv.bias"}


# On architecture 80 our convolution kernel is used for students only, on 90 for nearly all convolutions.
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_kernels_as_on_a_gpu(
    precision: FloatPrecision, architecture: int, model: DMFNet, inputs: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    """The network calls the operators that it would call on a GPU; here their references run."""
    largest, mean = HALF[precision]
    net = optimize(model, precision, kernels=True)
    with torch.no_grad(), assumed(architecture):
        fused = net(**inputs)
    difference = (fused - expected).abs()
    assert difference.max() <= largest
    assert difference.mean() <= mean
    with torch.no_grad():
        assert not torch.equal(fused, net(**inputs)), "other operators were called"


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("interval", [False, True])
def test_timesteps_as_on_a_gpu(steps: int, interval: bool) -> None:
    """Up to three timesteps are merged by one call of our convolution kernel, more by matrix products."""
    config = ModelConfig(channels=16, norm_groups=4, timesteps=(5, 80, 300, 600)[:steps], interval=interval)
    model = model_by_rule(config)
    given = random_inputs(config, pairs=2)
    net = optimize(model, "float16", kernels=True)
    with assumed(90):
        assert np.abs(run_model(net, given) - run_model(model, given)).max() <= HALF["float16"][0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "config",
    [StudentConfig(16, 2), StudentConfig(16, 1, factor=4), StudentConfig(8, 2), StudentConfig(16, 2, factor=1)],
)
def test_student_as_on_a_gpu(config: StudentConfig, precision: FloatPrecision) -> None:
    """Convolutions, too, use our kernels if they have a multiple of 16 input channels, in half precision."""
    model, given = model_by_rule(config), random_inputs(config, pairs=2)
    net = optimize(model, precision, kernels=True)
    with mock.patch.object(fused_module, "convolution", side_effect=convolution) as kernel, assumed(90):
        fused = run_model(net, given)
    inputs = [layer.in_channels for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert kernel.call_count == (precision != "float32") * sum(channels % 16 == 0 for channels in inputs)
    assert fused.dtype == np.float32
    assert (
        np.abs(fused - run_model(model, given)).max() <= {"float32": EXACT, "float16": 0.01, "bfloat16": 0.1}[precision]
    )
    lowest, highest = np.split(given["interval"], 2, axis=1)
    assert ((lowest <= fused) & (fused <= highest)).all()


def test_attention_too_wide_for_the_kernel() -> None:
    """PyTorch's attention is used instead of the kernel."""
    torch.manual_seed(0)
    model = DMFNet(ModelConfig(channels=160, norm_groups=40)).eval()
    small = {name: torch.tensor(array) for name, array in random_inputs(model.config, height=64, width=64).items()}
    with torch.no_grad():
        assert (optimize(model, kernels=True)(**small) - model(**small)).abs().max() <= EXACT


@pytest.mark.parametrize("kernels", [False, True])
def test_on_the_device_of_the_model(kernels: bool) -> None:
    net = optimize(DMFNet(DMFNET_PRESETS["tiny"]).to("meta"), kernels=kernels)
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}


def test_kernels_write_no_concatenation() -> None:
    """The graph has no concatenations and no stacking."""
    image, noise = torch.empty(1, 1, 64, 64, device="meta"), torch.empty(3, 2, 64, 64, device="meta")
    with torch.device("meta"):
        net = optimize(DMFNet(DMFNET_PRESETS["base"]), kernels=True)
    graph = torch.export.export(net, (image, image, noise)).graph
    targets = {str(node.target) for node in graph.nodes}
    assert not {name for name in targets if "cat" in name or "stack" in name or "group_norm.default" in name}
    assert "dmfnet.group_norm_silu.default" in targets


def test_kernels_need_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"triton is not installed: pip install 'dmfnet-fast\[gpu\]'"):
        optimize(DMFNet(DMFNET_PRESETS["tiny"]), kernels=True)


def gflop(net: torch.nn.Module, size: int) -> float:
    image, noise = torch.empty(1, 1, size, size, device="meta"), torch.empty(3, 2, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image, image, noise)
    return counter.get_total_flops() / 1e9


def test_arithmetic() -> None:
    """GFLOP of the base preset at 256x256, a multiply-add counted as two.

    Transposed convolutions for upsampling save 87 GFLOP, and projecting before the fusion's upsampling saves 2.5.
    """
    with torch.device("meta"):
        model = DMFNet(DMFNET_PRESETS["base"]).eval()
        assert gflop(model, 256) == pytest.approx(1705, abs=1)
        assert gflop(optimize(model), 256) == pytest.approx(1615.8, abs=0.1)
