"""TensorRT plugins: registered and asked as TensorRT does, on its real bindings over empty libraries."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

from dmfnet_fast.errors import EngineError
from export.onnx.functions import functions
from export.ops import FUNCTIONS, PLUGINS
from export.ops.shared import parts
from export.tensorrt.plugin_graph import with_plugins
from export.tensorrt.plugin_kernels import FEATURE_MAPS, Plugin, pixels_of_part
from export.tensorrt.plugins import register_plugins, supports_plugins
from export.tensorrt.ptx import SHARED_MEMORY, reorder
from kernels import convolution_epilogue as epilogue
from kernels.cases import RECORDS
from kernels.cases.record import Case, Draw
from kernels.launch import Launch, assumed
from tests.export.exported import CHANNELS as EXPORTED_CHANNELS
from tests.export.exported import arguments_of, computed, exported, tensors_of
from tests.export.tensorrt.plugin_runner import Symbol, number

ROOT = Path(__file__).parents[3]
CHANNELS = 64
ARCHITECTURES = (87, 89, 90, 110)
# Parts of 32 pixels, and of 512, the last of them not full.
SIZES: list[dict[str, int]] = [{"n": 6, "h": 48, "w": 80}, {"n": 12, "h": 400, "w": 336}]
BY_NAME = {plugin.name: plugin for plugin in PLUGINS}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# A function that each plugin is a part of.
FUNCTION_OF = {
    name: function for function in FUNCTIONS.values() for name in re.findall(r"dmfnet\.(\w+) <", function.plugins)
}


def _case(plugin: Plugin, size: dict[str, int], channels: int = CHANNELS) -> Case:
    """The operation that launches the kernel of a plugin."""
    return FUNCTION_OF[plugin.name].case(size["n"], channels, size["h"], size["w"])


def _planned(plugin: Plugin, size: dict[str, int], architecture: int, dtype: str, channels: int = CHANNELS) -> Launch:
    """What the kernel is launched with by PyTorch."""
    case = _case(plugin, size, channels)
    with assumed(architecture):
        calls = case.operation.plan(*case.make(Draw(DTYPES[dtype], "meta")))[1]
    return next(call for call in calls if call.kernel is plugin.kernel)


def _given(plugin: Plugin, size: dict[str, int], architecture: int, dtype: str, channels: int) -> dict[str, Any]:
    """By name: arguments of the operation, and of the launch."""
    case = _case(plugin, size, channels)
    names = inspect.signature(case.operation.reference).parameters
    arguments = dict(zip(names, case.make(Draw(DTYPES[dtype], "meta")), strict=True))
    return arguments | _planned(plugin, size, architecture, dtype, channels).arguments


def _request(
    plugin: Plugin,
    architecture: int,
    dtype: str = "float16",
    tactics: tuple[int, ...] = (1,),
    fixed: bool = False,
    channels: int = CHANNELS,
) -> dict[str, Any]:
    """Dimensions that are not `fixed` are known later only: they are labels of what is in the sizes."""
    sizes = [dict(size) for size in SIZES]
    given = [_given(plugin, size, architecture, dtype, channels) for size in SIZES]
    inputs = []
    for name in plugin.inputs:
        shape: list[Any] = list(given[0][name].shape)
        for axis, extents in enumerate(zip(*(each[name].shape for each in given), strict=True)):
            if not fixed and len(set(extents)) > 1:
                shape[axis] = f"{name} {axis}"
                for size, extent in zip(sizes, extents, strict=True):
                    size[shape[axis]] = extent
        kind = "float32" if given[0][name].dtype == torch.float32 else dtype
        inputs.append({"shape": shape, "dtype": kind})
    return {
        "plugin": plugin.name,
        "architecture": architecture,
        "dtype": dtype,
        "tactics": tactics,
        "fixed": fixed,
        "attributes": {name: kind(given[0][name]) for name, kind in plugin.attributes.items()},
        "inputs": inputs,
        "sizes": sizes[:1] if fixed else sizes,
    }


def _arguments(plugin: Plugin, planned: Launch) -> dict[str, Any]:
    """Those that are not compiled in, in the kernel's order."""
    given = {name: planned.arguments.get(name) for name in plugin.kernel.arg_names}
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value != 1)
    }


LIBRARIES = {
    "libnvinfer.so.11": (
        *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
        *("getBuilderPluginRegistry", "getPluginRegistry"),
    ),
    "libnvonnxparser.so.11": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that the plugins answer, in one process."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    folder = tmp_path_factory.mktemp("plugins")
    for library, symbols in LIBRARIES.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", str(source), "-o", str(folder / library)]
        subprocess.run(command, check=True)
    requests = [_request(plugin, architecture) for plugin in PLUGINS for architecture in ARCHITECTURES]
    requests += [_request(plugin, 87, fixed=True) for plugin in PLUGINS]
    requests += [_request(plugin, 87, tactics=plugin.tactics[1:]) for plugin in PLUGINS if plugin.tactics[1:]]
    for dtype in ("bfloat16", "float32"):
        requests += [_request(BY_NAME[f"dmfnet_{name}_kernel"], 90, dtype) for name in ("normalize", "attention")]
    requests.append(_request(BY_NAME["dmfnet_statistics_kernel"], 87, channels=36))
    asked, answered = folder / "requests.json", folder / "answers.json"
    asked.write_text(json.dumps(requests))
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    program = Path(__file__).with_name("plugin_builder.py")
    result = subprocess.run(
        [sys.executable, str(program), str(asked), str(answered)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    answers: dict[str, Any] = json.loads(answered.read_text())
    assert len(answers["answers"]) == sum(len(request["tactics"]) for request in requests)
    return answers


@pytest.fixture(scope="module")
def launches(built: dict[str, Any]) -> list[dict[str, Any]]:
    return [answer for answer in built["answers"] if "ptx" in answer]


def test_all_are_registered_once(built: dict[str, Any]) -> None:
    assert built["names"] == built["creators"] == [plugin.name for plugin in PLUGINS]


def test_channels_that_tensorrt_would_pad(built: dict[str, Any]) -> None:
    (refused,) = (answer for answer in built["answers"] if "error" in answer)
    assert "36 channels" in refused["error"]


def test_types_and_formats(launches: list[dict[str, Any]]) -> None:
    for answer in launches:
        plugin, request = BY_NAME[answer["request"]["plugin"]], answer["request"]
        last = {"float16": "HWC8", "bfloat16": "HWC8", "float32": "HWC"}[request["dtype"]]
        names = [*plugin.inputs, *plugin.outputs]
        assert answer["formats"] == [last if name in FEATURE_MAPS else "LINEAR" for name in names]
        feature = {"float16": "HALF", "bfloat16": "BF16", "float32": "FLOAT"}[request["dtype"]]
        assert answer["output_types"] == [feature if name == "out" else "FLOAT" for name in plugin.outputs]
        assert answer["tactics"] == list(plugin.tactics)


def test_launches_are_those_of_the_plans(launches: list[dict[str, Any]]) -> None:
    """Shapes of the outputs, grids, integers and threads, for every size."""
    for answer in launches:
        request, plugin = answer["request"], BY_NAME[answer["request"]["plugin"]]
        for place, size in enumerate(request["sizes"]):
            planned = _planned(plugin, size, request["architecture"], request["dtype"])
            integers = [value for value in _arguments(plugin, planned).values() if isinstance(value, int)]
            assert answer["extras"][place] == integers, answer["request"]
            outputs = [planned.arguments[name] for name in plugin.outputs]
            shapes = [list(output.shape) for output in outputs if isinstance(output, torch.Tensor)]
            if not request["fixed"]:
                for shape, name in zip(shapes, plugin.outputs, strict=True):
                    if name in ("statistics", "sums"):
                        shape[1] = epilogue.MOST_PARTS
            assert answer["outputs"][place] == shapes
            if answer["tactic"] == 1:
                assert answer["grid"][place] == [*planned.grid, 1, 1][:3], answer["request"]
                assert answer["block"][place] == [32 * planned.warps, 1, 1]
            assert answer["shared"][place][0] <= SHARED_MEMORY


def test_tactics_cover_the_same(launches: list[dict[str, Any]]) -> None:
    """More or fewer programs, of tiles as much smaller or larger; those of parts have a part each in any case."""
    first = {
        answer["request"]["plugin"]: answer
        for answer in launches
        if answer["tactic"] == 1 and answer["request"]["architecture"] == 87 and not answer["request"]["fixed"]
    }
    others = [answer for answer in launches if answer["tactic"] != 1]
    assert others
    for answer in others:
        name = answer["request"]["plugin"]
        usual = first[name]
        factor = answer["block"][0][0] / usual["block"][0][0]
        assert factor == {2: 2, 3: 0.5}[answer["tactic"]] ** BY_NAME[name].tile_axes
        assert answer["extras"] == usual["extras"]
        if BY_NAME[name].programs is parts:
            assert answer["grid"] == usual["grid"]
        else:
            covered = answer["grid"][1][0] * factor / usual["grid"][1][0]
            assert 0.9 < covered < 1.2, name


def test_parameters(launches: list[dict[str, Any]]) -> None:
    """As TensorRT passes them: inputs, integers, outputs; each is that of the kernel, by its place in Triton's list."""
    for answer in launches:
        request, plugin = answer["request"], BY_NAME[answer["request"]["plugin"]]
        planned = _planned(plugin, request["sizes"][0], request["architecture"], request["dtype"])
        arguments = _arguments(plugin, planned)
        integers = [name for name, value in arguments.items() if isinstance(value, int)]
        (found,) = re.findall(rf"\.entry {answer['name']}\((.*?)\)", answer["ptx"], re.DOTALL)
        declared = [(line.split()[1], line.split()[-1]) for line in found.split(",")]
        expected = [*plugin.inputs, *integers, *plugin.outputs]
        assert [kind for kind, _ in declared] == [".u32" if name in integers else ".u64" for name in expected]
        places = {f"{answer['name']}_param_{place}": name for place, name in enumerate(arguments)}
        # What is given for its shape alone has a name of its own, and is not read.
        unread = [name for name in expected if name not in arguments]
        assert [places.get(label) for _, label in declared] == [None if name in unread else name for name in expected]
        assert set(unread) <= set(plugin.inputs[:2])
        for label in (f"{answer['name']}_{name}" for name in unread):
            assert answer["ptx"].count(label) == 1
        used = set(re.findall(rf"\[({answer['name']}_\w+)\]", answer["ptx"]))
        assert used == set(places), "everything else is read"


def test_ptx(launches: list[dict[str, Any]], tmp_path: Path) -> None:
    """It assembles for its architecture; channels are read 16 bytes at a time; no paths of this machine."""
    narrow = {name for record in RECORDS.values() for name in record.narrow}
    for answer in launches:
        architecture, ptx = answer["request"]["architecture"], answer["ptx"]
        file = tmp_path / "kernel.ptx"
        file.write_text(ptx)
        command = [get_ptxas(architecture).path, f"--gpu-name={sm_arch_from_capability(architecture)}", str(file)]
        done = subprocess.run([*command, "-o", str(tmp_path / "cubin")], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        wide = BY_NAME[answer["request"]["plugin"]].kernel.__name__ not in narrow
        if answer["tactic"] == 1 and wide:
            assert re.search(r"(ld\.global|cp\.async)\S*(\.v4\.b32|.* 0x10)", ptx), answer["request"]["plugin"]
        assert str(ROOT) not in ptx
        (version,) = re.findall(r"\.version (\d+\.\d+)", ptx)
        assert version == {110: "9.0"}.get(architecture, "8.0")


def test_unexpected_ptx() -> None:
    entry = ".visible .entry k(\n\t.param .u64 a,\n\t.param .u32 b,\n\t.param .u64 c,\n\t.param .u64 d\n)\n{ [b] [a] }"
    assert re.findall(r"\.u(\d+) (\w+|[\w. ]+ k_\w+)", reorder(entry, "k", ["a", "b"], ["b", "s", "a"])) == [
        ("32", "b"),
        ("64", ".ptr .global .align 1 k_s"),
        ("64", "a"),
    ]
    with pytest.raises(EngineError, match="scratch"):
        reorder(entry.replace("[a]", "[d]"), "k", ["a", "b"], ["a", "b"])
    with pytest.raises(EngineError, match="other parameters"):
        reorder(entry, "k", ["a", "b", "e"], ["a", "b", "e"])
    with pytest.raises(EngineError, match="other parameters"):
        reorder(entry, "other", ["a", "b"], ["a", "b"])


def test_pixels_of_part() -> None:
    bases = [epilogue.MOST_PARTS * 2**power for power in range(22)]
    numbers = {base + step for base in bases for step in (-1, 0, 1)}
    for pixels in sorted({1, 2, 31, 32, 33, 2**31 - 1} | numbers):
        assert pixels_of_part(Symbol(pixels)).value == epilogue.pixels_of_part(pixels), pixels


def test_no_size_needs_more_than_a_larger_one() -> None:
    """As TensorRT allocates memory for the largest."""
    sizes = [(512, 512), (512, 640), (640, 640), (1024, 1024)]
    assert epilogue.pixels_of_part(512 * 640) > epilogue.pixels_of_part(512 * 512)  # so that there are fewer parts
    for plugin in PLUGINS:
        needed = []
        for height, width in sizes:
            shapes: dict[str, list[Any]] = {name: [1] * 4 for name in plugin.inputs}
            shapes[plugin.inputs[0]] = [Symbol(6), CHANNELS, Symbol(height), Symbol(width)]
            known = plugin.sizes(shapes)
            needed.append([np.prod([number(extent) for extent in shape(known)]) for shape in plugin.outputs.values()])
            assert number(known.parts) <= number(known.most_parts)
        for of_an_output in zip(*needed, strict=True):
            assert list(of_an_output) == sorted(of_an_output), plugin.name


def test_releases() -> None:
    assert [supports_plugins(version) for version in ("8.6.1", "10.3.0", "10.8.0.43", "10.9.0.34", "11.4.0")] == [
        *(False, False, False),
        *(True, True),
    ]


def test_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    with pytest.raises(EngineError, match=r"10\.3\.0 has no plugins .* 10\.9"):
        register_plugins(87)


@pytest.fixture(scope="module")
def model() -> Any:
    """One of each fused operation."""
    proto = exported(FUNCTIONS.values(), torch.float32)
    onnx.checker.check_model(proto)
    return proto


@pytest.fixture(scope="module")
def flat(model: Any) -> Any:
    before = model.SerializeToString()
    changed = with_plugins(model)
    assert model.SerializeToString() == before
    return changed


def test_graph(model: Any, flat: Any) -> None:
    assert not flat.functions
    assert list(flat.graph.input) == list(model.graph.input)
    assert [value.name for value in flat.graph.output] == [value.name for value in model.graph.output]
    assert flat.metadata_props == model.metadata_props
    nodes = [node for node in flat.graph.node if node.domain == "dmfnet"]
    assert {node.op_type for node in nodes} == set(BY_NAME)
    for node in nodes:
        plugin = BY_NAME[node.op_type]
        assert (len(node.input), len(node.output)) == (len(plugin.inputs), len(plugin.outputs))
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        marks = {"plugin_namespace": b"dmfnet", "plugin_version": b"1", "aot": 1}
        assert {name: attributes.pop(name) for name in marks} == marks
        assert {name: type(value) for name, value in attributes.items()} == plugin.attributes
    assert not {"Conv", "Resize", "Softmax", "InstanceNormalization"} & {node.op_type for node in flat.graph.node}


def test_statistics_are_taken_once() -> None:
    """Two norms of x, and one of it beside another: one pass."""
    norms: dict[str, Any] = {"groups": 4, "eps": 1e-5}
    nodes = [
        onnx.helper.make_node(name, inputs, [output], domain="dmfnet", **norms)
        for name, inputs, output in (
            ("dmfnet_group_norm", ["x", "weight", "bias"], "a"),
            ("dmfnet_group_norm_silu", ["x", "weight", "bias"], "b"),
            ("dmfnet_group_norm_silu_joined", ["a", "x", "weights", "biases"], "c"),
        )
    ]
    maps = {name: ["n", channels, "h", "w"] for name, channels in (("x", 16), ("b", 16), ("c", 32))}
    shapes: dict[str, list[Any]] = {**maps, "weight": [16], "bias": [16], "weights": [32], "biases": [32]}
    values = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()
    }
    outputs = [values.pop(name) for name in ("b", "c")]
    graph = onnx.helper.make_graph(nodes, "norms", list(values.values()), outputs)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("dmfnet", 1)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, functions=list(functions().values()), ir_version=10)
    taken = [node.input[0] for node in with_plugins(proto).graph.node if node.op_type == "dmfnet_statistics_kernel"]
    assert len(taken) == 2
    assert taken.count("x") == 1


def test_what_there_are_no_plugins_for(model: Any) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.functions.add(name="dmfnet_new", domain="dmfnet")
    with pytest.raises(EngineError, match="dmfnet_new"):
        with_plugins(changed)


@pytest.mark.parametrize(("tactic", "sizes"), [(1, "fixed"), (2, "dynamic"), (3, "dynamic")])
def test_what_it_computes(model: Any, flat: Any, tactic: int, sizes: str, tmp_path: Path) -> None:
    """The launches, connected as they are, give in Triton's interpreter what the functions say."""
    shape = (3, EXPORTED_CHANNELS, 9, 12)
    tensors = tensors_of(arguments_of(FUNCTIONS.values(), shape, Draw(torch.float32, "cpu")))
    expected = computed(model, tensors)
    onnx.save(flat, tmp_path / "flat.onnx")
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(tmp_path / "inputs.npz", **arrays)
    program = Path(__file__).with_name("plugin_runner.py")
    files = [str(tmp_path / name) for name in ("flat.onnx", "inputs.npz", "results.npz")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(program), *files, str(tactic), sizes],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    found = np.load(tmp_path / "results.npz")
    for name, values in expected.items():
        # float32 in both; the sums are in other orders.
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=2e-5, err_msg=name)
