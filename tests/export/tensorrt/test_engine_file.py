"""`dmfnet-export` to engines and to a server's models, from one end to the other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import Interface, interface_of
from dmfnet_fast.artifacts.manifest import Manifest, check_path, load_check, manifest_path
from dmfnet_fast.artifacts.onnx_metadata import seal, unsealed
from dmfnet_fast.artifacts.parity import Reference, compare_with
from dmfnet_fast.engines import shipped
from dmfnet_fast.engines.cuda_runtime import Gpu, current_gpu
from dmfnet_fast.errors import DMFNetError, EngineError
from dmfnet_fast.model import load_model
from dmfnet_fast.model.weights import read_metadata
from export.command import main
from export.onnx.graph import to_onnx
from export.onnx.pixels import with_pixels
from export.onnx.source import MOST_PIXELS, from_content, shapes_of
from export.request import make_profile, parse_size, shipped_graph
from export.tensorrt.builder import Profile, known_gpus
from export.tensorrt.engine_file import in_profile
from export.triton_server import configuration, of_one_size, write_repository
from export.verify import on_onnx_runtime
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs, run_model

TURBO = shipped()["turbo"]
# Built in a second where that of turbo takes several.
NANO_GRAPH = shipped_graph(shipped()["nano"])

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux and Windows")

TO_RTX = ["--target", "tensorrt-rtx", "--gpu", "sm_89"]
RTX = ["nano", *TO_RTX]


ORIN = Gpu("Orin", "8.7", multiprocessors=8, memory=8 * 2**30, integrated=True)


def no_gpu() -> Gpu:
    raise EngineError("device 'cuda': there are 0 CUDA GPUs")


def own_gpu() -> str | None:
    """Of this machine, as TensorRT-RTX spells it."""
    with suppress(DMFNetError):
        name = f"sm_{current_gpu().capability.replace('.', '')}"
        return name if name in known_gpus() else None
    return None


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "tiny.engine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.tensorrt.engine_file.current_gpu", no_gpu)
        result = CliRunner().invoke(main, ["turbo", *TO_RTX, "--batch", "2", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}\n"
    for words in (
        "checking with ONNX Runtime",
        "PSNR",
        "largest activation",
        "building with",
        "not verified: no GPU",
    ):
        assert words in result.stderr
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "tiny.engine",
        "tiny.engine.check.npz",
        "tiny.engine.json",
    ]
    return path


def test_manifest(engine: Path) -> None:
    manifest = Manifest.read(engine)
    manifest.check_file(engine)
    assert manifest.flavour == "tensorrt-rtx"
    assert manifest.version == trt.__version__
    assert manifest.compute_capabilities == ["8.9"]
    assert manifest.precision == "float16"
    assert manifest.weights == read_metadata(TURBO)["sha256"]
    assert manifest.shapes == {"min": [1, 256, 256], "opt": [2, 256, 256], "max": [2, 256, 256]}
    assert not manifest.parity
    assert manifest.graph_parity[0]["psnr"] > 60
    assert 1 < manifest.largest_activation < 10000
    assert manifest.layers["count"] > 300
    assert manifest.check is not None
    pair = load_check(engine, manifest.check["sha256"], interface_of(manifest.config))
    with Fuser("turbo", precision="float32") as fuser:
        np.testing.assert_allclose(fuser._engine.run(pair.inputs), pair.fused, atol=1e-4)


def test_inspect(engine: Path, cli: CliRunner) -> None:
    result = cli.invoke(main, ["--inspect", str(engine)])
    assert result.exit_code == 0, result.output
    for words in (f"tensorrt-rtx {trt.__version__} engine", "8.9", "not verified yet", "float16", "ONNX Runtime"):
        assert words in result.stdout
    assert len([line for line in result.stdout.splitlines() if "correlation" in line]) > 80
    for file, words in ((shipped_graph(TURBO), "any multiple of 16"), (TURBO, "sha256")):
        result = cli.invoke(main, ["--inspect", str(file)])
        assert result.exit_code == 0, result.output
        assert words in result.stdout
    with engine.open("ab") as file_:
        file_.write(b"more")
    try:
        result = cli.invoke(main, ["--inspect", str(engine)])
        assert result.exit_code == 2
        assert "its manifest says" in result.stderr
    finally:
        engine.write_bytes(engine.read_bytes()[:-4])


@pytest.mark.skipif(own_gpu() == "sm_89", reason="it is for this GPU")
def test_no_gpu_here(engine: Path) -> None:
    with pytest.raises(DMFNetError, match=r"check the NVIDIA driver|for GPUs of compute capability"):
        Fuser(engine)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the graph, which other tests have made, left out."""
    monkeypatch.setattr("export.onnx.source.has_onnx_runtime", lambda: False)


@pytest.mark.usefixtures("quick")
def test_replaces_what_was_there(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without a check pair leaves none of an older one."""
    path = tmp_path / "nano.engine"
    for file in (path, check_path(path), manifest_path(path)):
        file.write_text("old")
    monkeypatch.setattr("export.onnx.source.unpack", lambda *_: ())
    result = cli.invoke(main, [*RTX, "--size", "64x80", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "warning: the engine stays unverified" in result.stderr
    assert "not verified, and no check pair" in cli.invoke(main, ["--inspect", str(path)]).stdout
    assert Manifest.read(path).check is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["nano.engine", "nano.engine.json"]


@pytest.mark.usefixtures("quick")
def test_failures_leave_nothing(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def not_so(*_: Any) -> None:
        raise EngineError("2 of 3 convolutions are not float16; nothing was written")

    output = str(tmp_path / "nano.engine")
    small = [*RTX, "--size", "64", "-o", output]
    for place, failure, message in (
        (Path, full, f"error: {output}: cannot be written: No space left on device"),
        ("export.tensorrt.engine_file.check_precision", not_so, "error: 2 of 3 convolutions are not float16"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, "write_bytes", failure) if isinstance(place, type) else patch.setattr(place, failure)
            result = cli.invoke(main, small)
        assert result.exit_code == 2
        assert message in result.stderr
        assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        # Root may write anywhere.
        patch.setattr("tempfile.mkdtemp", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        result = cli.invoke(main, small)
    assert result.exit_code == 2
    assert f"error: {output}: cannot be written: Permission denied" in result.stderr


class Alias(ModuleType):
    """TensorRT-RTX in the place of TensorRT, with the GPU that it builds for set in advance."""

    def __init__(self, version: str) -> None:
        super().__init__("tensorrt")
        self.__dict__.update({n: getattr(trt, n) for n in dir(trt) if not n.startswith("_")})
        self.__version__ = version
        self.__spec__ = ModuleSpec("tensorrt", None)  # which PyTorch asks for where it compiles

        self.configurations = configurations = list[Any]()

        class Builder(trt.Builder):  # type: ignore[misc, name-defined]
            def create_builder_config(self) -> Any:
                config = super().create_builder_config()
                config.num_compute_capabilities = 1
                config.set_compute_capability(trt.ComputeCapability.SM89, 0)
                configurations.append(config)
                return config

        convolution = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Datatype": "Half"}], "Outputs": []}
        inspector = SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": [convolution] * 3}))
        opened = SimpleNamespace(create_engine_inspector=lambda: inspector)
        self.Builder = Builder
        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: opened)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("right", [True, False])
def test_tensorrt(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    """Its path through the same code, up to the GPU: the image comes from the graph, by ONNX Runtime."""
    seen = []

    def run(path: Path, references: list[Reference]) -> Any:
        Manifest.read(path).check_file(path)
        seen.extend(references)
        wrong = [replace(r, fused=r.fused + 0.1) for r in references]
        return on_onnx_runtime(NANO_GRAPH.read_bytes(), "float16", references if right else wrong)

    library = Alias("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr("export.tensorrt.engine_file.current_gpu", lambda: ORIN)
    monkeypatch.setattr("export.tensorrt.engine_file.run_engine", run)
    path = tmp_path / "nano.engine"
    options = ["nano", "--fp16", "--min", "64", "--opt", "64x96", "--max", "128"]
    result = cli.invoke(main, [*options, "-o", str(path)])
    assert "scratch memory limited to 2048 MiB, a quarter of what this GPU shares with the system" in result.stderr
    (configuration,) = library.configurations
    assert configuration.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**31
    assert [r.shape for r in seen] == [(1, 64, 96)] * 2 + [(1, 128, 128)] + [(1, 64, 96)] * 5
    if not right:
        assert result.exit_code == 2
        assert "differs from the weights" in result.stderr
        assert "nothing was written (--no-check keeps the engine for diagnosis)" in result.stderr
        assert not list(tmp_path.iterdir())
        result = cli.invoke(main, [*options, "-o", str(path), "--no-check", "--workspace", "100"])
        assert result.exit_code == 0, result.output
        assert "warning: differs from the weights" in result.stderr
        assert "kept for diagnosis, but Fuser will refuse it" in result.stderr
        assert library.configurations[1].get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 100 * 2**20
        kept = Manifest.read(path)
        assert not kept.parity  # so that it is compared again, and refused, when it is opened
        assert kept.check is not None
        return
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(path)
    assert set(manifest.parity) == {ORIN.model}
    assert manifest.check is not None
    assert (manifest.device, manifest.compute_capabilities) == (ORIN.model, ["8.7"])
    assert manifest.layers["kinds"] == {"CaskConvolution": 3}
    inspected = cli.invoke(main, ["--inspect", str(path)])
    assert "built on            Orin, 8 multiprocessors, 8 GiB" in inspected.stdout


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("own", ["8.9", "9.0"])
def test_rtx_where_there_is_a_gpu(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    """Run at once, if it is for that GPU."""
    gpu = replace(ORIN, name="A GPU", capability=own, integrated=False)
    monkeypatch.setattr("export.tensorrt.engine_file.current_gpu", lambda: gpu)
    graph = from_content(NANO_GRAPH.read_bytes(), "shipped")
    parity = on_onnx_runtime(graph.content, "float16", graph.references)
    monkeypatch.setattr("export.tensorrt.engine_file.run_engine", lambda *_: parity)
    path = tmp_path / "nano.engine"
    result = cli.invoke(main, [*RTX, "--size", "128", "-o", str(path)])
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(path)
    assert manifest.parity == ({gpu.model: parity.to_dict()} if own == "8.9" else {})
    assert check_path(path).exists()  # for GPUs of the other kinds


@pytest.mark.skipif(own_gpu() is None, reason="no GPU that TensorRT-RTX builds for")
def test_on_a_gpu(cli: CliRunner, tmp_path: Path) -> None:
    """The whole: built, verified, run."""
    path = tmp_path / "nano.engine"
    options = ["--target", "tensorrt-rtx", "--gpu", str(own_gpu()), "--min", "64", "--opt", "128", "--max", "256"]
    result = cli.invoke(main, [*options, "--batch", "2", "-o", str(path)])
    assert result.exit_code == 0, result.output
    wanted = [r for r in from_content(NANO_GRAPH.read_bytes(), "shipped").references if r.shape[0] <= 2]
    with Fuser(path) as fuser:
        assert fuser.info["verified"] == "yes"
        for _ in range(2):
            fused = [fuser._engine.run(reference.inputs) for reference in wanted]
            assert compare_with("", "float16", fused, wanted).within


def _stopped(tmp_path: Path, number: signal.Signals) -> tuple[int, str]:
    """Exit status and messages of a build that is asked to stop once it has begun."""
    program = "from dmfnet_fast.commands.export import main; main()"
    call = [sys.executable, "-c", program, "turbo", *TO_RTX, "-o", "turbo.engine"]
    with subprocess.Popen(call, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = ""
        while "10%" not in told.rpartition("building")[2]:
            told += process.stderr.read(1)
        process.send_signal(number)
        told += process.stderr.read()
    return process.returncode, told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_building(tmp_path: Path, number: signal.Signals) -> None:
    status, told = _stopped(tmp_path, number)
    assert status != 0
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


WITH_THE_BUILDER_ALONE = (
    "import sys; sys.modules.update(dict.fromkeys(['torch', 'triton', 'onnx', 'onnxscript', 'onnxruntime', "
    "'openvino', 'safetensors', 'cuda']));"
    "from dmfnet_fast.commands.export import main; main()"
)


def test_needs_the_builder_alone(tmp_path: Path) -> None:
    """As on a Jetson: the shipped graph, and nothing that weights would take."""
    call = [sys.executable, "-c", WITH_THE_BUILDER_ALONE, *RTX, "--size", "128", "-o", str(tmp_path / "nano.engine")]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert check_path(tmp_path / "nano.engine").exists()
    assert "ONNX Runtime," in result.stderr  # as it was checked where it was made
    call = [str(shipped()["nano"]) if part == "nano" else part for part in call]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch is not installed: pip install 'dmfnet-fast[export]'")


def test_pixels(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a graph of luminances, with PyTorch; and from one of pixels as on a Jetson, with the builder alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("export.tensorrt.engine_file.current_gpu", no_gpu)
    rtx = ["--target", "tensorrt-rtx", "--gpu", "sm_89", "--size", "128"]
    result = cli.invoke(main, ["nano", *rtx, "--pixels", "-o", "here.engine"])
    assert result.exit_code == 0, result.output
    assert "checking them with ONNX Runtime" in result.stderr
    shipped_file = shipped_graph(shipped()["nano"])
    proto = with_pixels(onnx.ModelProto.FromString(unsealed(shipped_file.read_bytes())), Interface(0, interval=True))
    Path("graph.onnx").write_bytes(seal(proto.SerializeToString()))
    call = [sys.executable, "-c", WITH_THE_BUILDER_ALONE]
    result_ = subprocess.run([*call, "graph.onnx", *rtx, "-o", "there.engine"], capture_output=True, check=False)
    assert result_.returncode == 0, result_.stderr
    for file in ("here.engine", "there.engine"):
        manifest = Manifest.read(Path(file))
        assert manifest.pixels
        assert manifest.check is not None
        inspected = cli.invoke(main, ["--inspect", file])
        assert "8-bit images, with the rules inside" in inspected.stdout
    result_ = subprocess.run([*call, "nano", *rtx, "--pixels", "-o", "x.engine"], capture_output=True, check=False)
    assert result_.returncode == 2
    assert b"error: torch is not installed: pip install 'dmfnet-fast[export]'; without it, build" in result_.stderr
    assert not Path("x.engine").exists()


def test_profiles() -> None:
    assert parse_size("256", "--size") == (256, 256)
    assert parse_size(" 64x1024 ", "--size") == (64, 1024)
    assert make_profile(None, None, None, None, 3) == Profile((1, 256, 256), (3, 256, 256), (3, 256, 256))
    wide = make_profile(None, "64x128", None, "512", 4)
    assert wide == Profile((1, 64, 128), (4, 512, 512), (4, 512, 512))
    assert str(wide) == "64x128 to 512x512, 1 to 4 pairs"
    assert (2, 64, 512) in wide
    assert (2, 64, 112) not in wide
    # Corners, and one between; without those that take minutes on a CPU.
    assert shapes_of(wide) == [(1, 64, 128), (1, 288, 320)]
    assert shapes_of(make_profile("1024", None, None, None, 1)) == [(1, 1024, 1024)]
    assert all(np.prod(shape) <= MOST_PIXELS for shape in shapes_of(wide))


def test_references_in_a_profile() -> None:
    def reference(pairs: int, height: int, width: int) -> Reference:
        images = np.arange(pairs, dtype=np.uint8)[:, None, None] * np.ones((1, height, width), np.uint8)
        return Reference(images, images, images[:, None].astype(np.float32), Interface(3, interval=False))

    known = (reference(5, 64, 96), reference(1, 128, 128), reference(1, 64, 64))
    found = in_profile(known, Profile((1, 64, 80), (2, 64, 96), (2, 128, 128)))
    assert [r.shape for r in found] == [(2, 64, 96), (2, 64, 96), (1, 64, 96), (1, 128, 128)]
    assert [int(r.fused[0, 0, 0, 0]) for r in found[:3]] == [0, 2, 4]


def test_model_repository(cli: CliRunner, tmp_path: Path) -> None:
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    folder = tmp_path / "models"
    given = [str(TURBO.with_suffix(".onnx")), "--target", "onnx", "--triton-server", str(folder)]
    result = cli.invoke(main, [*given, "--size", "64x96", "--batch", "4"])
    assert result.exit_code == 0, result.output
    model = folder / "dmfnet-turbo"
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == ["dmfnet-turbo/1/model.onnx", "dmfnet-turbo/config.pbtxt"]
    read = text_format.Parse((model / "config.pbtxt").read_text(), config.ModelConfig())
    assert (read.name, read.platform, read.max_batch_size) == ("dmfnet-turbo", "onnxruntime_onnx", 4)
    assert read.HasField("dynamic_batching")
    interface = interface_of(json.loads(read_metadata(TURBO)["config"]))
    given_shapes = {name: shape for name, shape in interface.shapes(3, 64, 96).items() if name != "noise"}
    assert [set(warm.inputs) for warm in read.model_warmup] == [set(given_shapes)]
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for given_, described in ((session.get_inputs(), read.input), (session.get_outputs(), read.output)):
        assert [value.name for value in given_] == [value.name for value in described]
        for value, entry in zip(given_, described, strict=True):
            assert value.shape[1:] == list(entry.dims) == list(given_shapes.get(value.name, (3, 1, 64, 96))[1:])
            assert value.type == "tensor(float)"
            assert entry.data_type == config.TYPE_FP32
    inputs = random_inputs(load_model(TURBO).config, pairs=3)
    (served,) = session.run(None, {name: inputs[name] for name in given_shapes})
    with Fuser("turbo", precision="float32") as fuser:
        np.testing.assert_allclose(served, fuser._engine.run(inputs), atol=1e-4)
    again = cli.invoke(main, given)
    assert again.exit_code == 2
    assert "dmfnet-turbo: is there already; remove it, or name the new one with -o NAME" in again.stderr
    other = cli.invoke(main, [*given, "--size", "128", "-o", "tiny-128"])
    assert other.exit_code == 0, other.output
    assert "checking what is served with ONNX Runtime" in other.stderr
    read = text_format.Parse((folder / "tiny-128" / "config.pbtxt").read_text(), config.ModelConfig())
    assert read.name == "tiny-128"
    assert read.max_batch_size == 1
    assert not read.HasField("dynamic_batching")
    assert read.parameters["weights"].string_value == read_metadata(TURBO)["sha256"]
    assert "ONNX Runtime, float32, 128x128" in read.parameters["parity"].string_value


def test_served_student(tmp_path: Path) -> None:
    """Nothing is inside that belongs to one size, but the size."""
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    model = model_by_rule(SMALL["student"])
    proto = to_onnx(model)
    interface = interface_of(model.config.to_dict())
    profile = Profile((1, 64, 96), (2, 64, 96), (2, 64, 96))
    served = of_one_size(proto.SerializeToString(), interface, profile)
    written = configuration("student", "onnxruntime_onnx", True, interface, profile, {})
    write_repository(tmp_path / "student", {"model.onnx": served}, written)
    read = text_format.Parse((tmp_path / "student" / "config.pbtxt").read_text(), config.ModelConfig())
    dims = {entry.name: list(entry.dims) for entry in read.input}
    assert dims == {"a": [1, 64, 96], "b": [1, 64, 96], "interval": [2, 64, 96]}
    assert "the least and the greatest luminance" in written
    file = tmp_path / "student" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert {value.name: value.shape[1:] for value in session.get_inputs()} == dims
    inputs = random_inputs(model.config, pairs=2)
    (fused,) = session.run(None, inputs)
    np.testing.assert_allclose(fused, run_model(model, inputs), atol=2e-5)


@pytest.mark.usefixtures("quick")
def test_served_plan(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TensorRT engine with its noise inside."""
    monkeypatch.setitem(sys.modules, "tensorrt", Alias("10.13.0"))
    monkeypatch.setattr("export.tensorrt.engine_file.current_gpu", no_gpu)
    result = cli.invoke(main, ["nano", "--triton-server", str(tmp_path / "new"), "--size", "64"])
    assert result.exit_code == 2
    assert result.stderr == "error: device 'cuda': there are 0 CUDA GPUs\n"  # before anything is done
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(
        "export.tensorrt.engine_file.current_gpu", lambda: replace(ORIN, name="Thor", capability="11.0")
    )
    seen: list[Reference] = []

    def run(path: Path, references: list[Reference]) -> Any:
        assert interface_of(Manifest.read(path).config) == references[0].interface
        seen.extend(references)
        return on_onnx_runtime(NANO_GRAPH.read_bytes(), "float16", references)

    monkeypatch.setattr("export.tensorrt.engine_file.run_engine", run)
    served = ["nano", "--triton-server", str(tmp_path), "--size", "64x96", "--batch", "2"]
    result = cli.invoke(main, served)
    assert result.exit_code == 0, result.output
    assert "verifying on the GPU" in result.stderr
    assert [r.shape for r in seen] == [(2, 64, 96), (2, 64, 96), (2, 64, 96), (1, 64, 96)]
    assert all("noise" not in r.inputs for r in seen)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert files == ["dmfnet-nano/1/model.plan", "dmfnet-nano/config.pbtxt"]
    assert (tmp_path / "dmfnet-nano" / "1" / "model.plan").stat().st_size > 1e5
    text = (tmp_path / "dmfnet-nano" / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in text
    assert 'key: "tensorrt" value { string_value: "10.13.0" }' in text
    assert 'key: "GPU" value { string_value: "Thor, 8 multiprocessors, 8 GiB" }' in text
    assert 'key: "parity" value { string_value: "ONNX Runtime, float16, 64x96: ' in text
    assert "KIND_GPU" in text
