"""Graphs from pixels to pixels: equal to the same network between the rules of `Canvas`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import IMAGES, OUTPUT, Interface, interface_of
from dmfnet_fast.artifacts.network_inputs import network_inputs, pixel_inputs
from dmfnet_fast.engines import shipped
from dmfnet_fast.errors import EngineError, ImageError
from dmfnet_fast.images.color import Canvas, luminance
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.phantom import make_phantom
from export.command import main
from export.onnx.graph import OPSET, to_onnx
from export.onnx.pixels import with_pixels
from export.onnx.source import from_content
from tests.engines.test_pixels import PAIRS, RULES, images
from tests.synthetic_weights import SMALL, model_by_rule

SEED = 5
# Those that TensorRT 10.3 has, says the list of its ONNX parser. BitShift, for one, it has not.
ELEMENTWISE = {"Add", "Cast", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mul", "Round", "Sub"}
SHAPES = {"Concat", "Constant", "Gather", "Identity", "Slice", "Split", "Squeeze", "Unsqueeze"}


# In place of a network with noise and without interval, which takes a minute to export.
NOISY = f"""<ir_version: 10, opset_import: ["" : {OPSET}]>
network (float[n, 1, h, w] a, float[n, 1, h, w] b, float[1, 2, h, w] noise) => (float[n, 1, h, w] fused) {{
    both = Mean (a, b)
    first, second = Split <axis = 1, num_outputs = 2> (noise)
    tenth = Constant <value_float = 0.1> ()
    little = Mul (first, tenth)
    fused = Sub (both, little)
}}"""


@pytest.fixture(scope="module", params=["student", "noise"])
def models(request: pytest.FixtureRequest) -> tuple[Interface, Any, Any]:
    """The interface of a small network, its graph, and its graph of pixels."""
    if request.param == "noise":
        interface, plain = Interface(timesteps=1, interval=False), onnx.parser.parse_model(NOISY)
        for number, node in enumerate(plain.graph.node):
            node.name = f"node_{number}"
    else:
        model = model_by_rule(SMALL[request.param])
        interface, plain = interface_of(model.config.to_dict()), to_onnx(model)
    return interface, plain, with_pixels(plain, interface)


def _runner(proto: Any) -> Any:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run([OUTPUT], inputs)[0]


def test_equal_to_canvases(models: tuple[Interface, Any, Any]) -> None:
    """On ONNX Runtime, bit for bit: heads and extremes, by every rule, in batches of several sizes."""
    interface, plain, proto = models
    of_pixels = replace(interface, pixels=True)
    on_pixels, on_luminances = _runner(proto), _runner(plain)

    def check(a: list[NDArray[np.uint8]], b: list[NDArray[np.uint8]], rules: Rules) -> None:
        grays = [luminance(image) for image in a]
        canvases = [Canvas(one, other, rules=rules) for one, other in zip(grays, b, strict=True)]
        inputs, _ = network_inputs(interface, canvases, SEED)
        fused = on_luminances(inputs)
        colors = [image if image.ndim == 3 else np.stack([image] * 3, -1) for image in b]
        got = on_pixels(pixel_inputs(of_pixels, np.stack(grays), np.stack(colors), rules, SEED))
        assert got.dtype == np.uint8
        for canvas, y, one, image in zip(canvases, fused, b, got, strict=True):
            wanted = canvas.finish(y[0])
            assert np.array_equal(image if one.ndim == 3 else image[..., 0], wanted)

    given = images()
    for rules in RULES:
        check([given[a] for a, _ in PAIRS], [given[b] for _, b in PAIRS], rules)
    rng = np.random.default_rng(1)
    for size in ((96, 64), (64, 160)):
        check([rng.integers(0, 256, size, np.uint8)], [rng.integers(0, 256, (*size, 3), np.uint8)], Rules())


def test_as_tensorrt_takes_it(models: tuple[Interface, Any, Any]) -> None:
    """uint8 for inputs and output alone, which only conversions touch; no operator that TensorRT lacks."""
    interface, plain, proto = models
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.functions
    typed = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    values = (*typed.input, *typed.output, *typed.value_info)
    eight_bit = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    assert eight_bit == {*IMAGES, OUTPUT}
    assert not any(tensor.data_type == onnx.TensorProto.UINT8 for tensor in typed.initializer)
    touching = [node for node in typed.node if eight_bit & {*node.input, *node.output}]
    assert {node.op_type for node in touching} == {"Cast"}
    assert not any(value.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE for value in values)
    added = {node.op_type for node in proto.graph.node if node.name.startswith(("before.", "behind."))}
    assert added <= ELEMENTWISE | SHAPES
    names = ["a", "b", *(["noise"] if interface.timesteps else []), "rules"]
    assert [value.name for value in proto.graph.input] == names
    # The network itself is as it was.
    kept = [node.op_type for node in proto.graph.node if node.name.startswith("network.")]
    assert kept == [node.op_type for node in plain.graph.node]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The shipped student for CPUs, of luminances and of pixels."""
    plain = shipped()["nano"].with_suffix(".onnx")
    folder = tmp_path_factory.mktemp("pixels")
    path = folder / "pixels.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.onnx.source.STANDARD_SHAPES", ((2, 64, 96),))
        result = CliRunner().invoke(main, ["nano", "--target", "onnx", "--pixels", "-o", str(path)])
    assert result.exit_code == 0, result.output
    for words in ("adding 8-bit images and rules", "checking them with ONNX Runtime", "checking them with OpenVINO"):
        assert words in result.stderr
    return plain, path


@pytest.fixture(scope="module")
def fusers(files: tuple[Path, Path]) -> Iterator[tuple[Fuser, Fuser]]:
    plain, path = files
    with Fuser(plain, precision="float32") as usual, Fuser(path, precision="float32") as pixels:
        assert pixels._engine.takes_pixels
        yield usual, pixels


def _levels_apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.abs(luminance(one).astype(np.int64) - luminance(other))


@pytest.mark.filterwarnings("ignore:.* are they swapped")
def test_fuser_on_openvino(fusers: tuple[Fuser, Fuser]) -> None:
    """One gray level at most, where rounding meets a boundary: OpenVINO divides by multiplication."""
    usual, pixels = fusers
    given = images()
    for name_a, name_b in PAIRS:
        a, b = given[name_a], given[name_b]
        got, wanted = pixels.fuse(a, b), usual.fuse(a, b)
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        apart = _levels_apart(got, wanted)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3
    several = [given["mri"], given["white"], given["mri"]], [given["pet"], given["color noise"], given["ct"]]
    for got, wanted in zip(pixels.fuse(*several), usual.fuse(*several), strict=True):
        assert _levels_apart(got, wanted).max() <= 1


@pytest.mark.parametrize("size", [(70, 90), (64, 72)])
def test_sizes_that_are_padded(fusers: tuple[Fuser, Fuser], size: tuple[int, int]) -> None:
    """The rules hold for the same neighborhoods; the outermost padding differs, and with it little of the border."""
    usual, pixels = fusers
    head = make_phantom(0, 96)
    a, b = (image[: size[0], : size[1]] for image in (head.mri, head.pet))
    got, wanted = pixels.fuse(a, b), usual.fuse(a, b)
    assert got.shape == (*size, 3)
    assert _levels_apart(got, wanted).max() <= 1
    assert (_levels_apart(got, wanted) > 0).mean() < 0.01


@pytest.mark.parametrize("rules", [Rules(0.4), Rules(0.9, invention=True)], ids=str)
def test_rules_of_a_fuser(files: tuple[Path, Path], rules: Rules) -> None:
    """They are inputs: one file serves all."""
    given = images()
    results = []
    for file in files:
        with Fuser(file, precision="float32", keep_chroma=rules.kept_chroma, allow_invention=rules.invention) as fuser:
            results.append(fuser.fuse(given["mri"], given["saturated"]))
    assert _levels_apart(*results).max() <= 1
    assert (results[0] != results[1]).mean() < 1e-3


def test_what_is_refused(fusers: tuple[Fuser, Fuser], files: tuple[Path, Path], tmp_path: Path) -> None:
    _, pixels = fusers
    head = make_phantom(0, 64)
    deep = head.ct.astype(np.uint16) * 257
    with pytest.raises(ImageError, match=r"^b: is uint16; pixels.onnx takes 8-bit images: convert it to uint8, or use"):
        pixels.fuse(head.mri, deep)
    with pytest.raises(ImageError, match=r"^a\[1\]: is float32; pixels.onnx takes 8-bit"):
        pixels.fuse([head.mri, head.mri.astype(np.float32) / 255], [head.ct, head.ct])
    flat = np.zeros((1, 1, 64, 64), np.float32)
    with pytest.raises(EngineError, match=r"pixels.onnx: takes 8-bit images, not luminances: use fuse\(\)"):
        pixels.run(flat, flat)
    command = [str(files[1]), "--target", "onnx", "--triton-server", str(tmp_path / "models")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "pixels.onnx: takes 8-bit images, the server's model takes luminances" in result.stderr
    assert not list(tmp_path.iterdir())


def test_file(files: tuple[Path, Path]) -> None:
    """The file says what it takes, and keeps the luminances to verify engines with."""
    plain, path = files
    graph, of_luminances = (from_content(file.read_bytes(), file.name) for file in (path, plain))
    assert graph.pixels
    assert not of_luminances.pixels
    assert graph.weights == of_luminances.weights
    assert [reference.shape for reference in graph.references] == [(2, 64, 96), (5, 64, 96)]
    result = CliRunner().invoke(main, ["--inspect", str(path)])
    assert result.exit_code == 0, result.output
    assert "8-bit images, with the rules inside" in result.stdout
    result = CliRunner().invoke(main, ["--inspect", str(plain)])
    assert "luminances" in result.stdout
