"""Models for the Python backend of Triton Inference Server: what is written, and a real server that runs it."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import text_format

from dmfnet_fast import Fuser
from dmfnet_fast.engines import shipped
from dmfnet_fast.phantom import make_phantom
from export.command import main
from tests.export.triton_process import environment, running

NANO = shipped()["nano"].with_suffix(".onnx")
REQUESTS = 200
SIZES = ((128, 128), (96, 160))  # heights and widths


def export(cli: CliRunner, folder: Path, *more: str) -> Any:
    """Write nano for the Python backend, as `folder`/fusion."""
    given = [str(NANO), "--target", "onnx", "--triton-server", str(folder), "--backend", "python", "-o", "fusion"]
    return cli.invoke(main, [*given, *more])


@pytest.fixture
def pairs() -> list[tuple[Any, Any]]:
    """Ten MRIs (H, W, 1) with a PET or a CT, (H, W, 3) or (H, W, 1), of two sizes."""
    made = []
    for seed in range(10):
        height, width = SIZES[seed % 2]
        head = make_phantom(seed, max(SIZES[seed % 2]))
        other = head.pet if seed % 4 < 2 else head.ct[..., None]
        made.append((head.mri[:height, :width, None], other[:height, :width]))
    return made


def test_repository(cli: CliRunner, tmp_path: Path) -> None:
    protocol = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    result = export(cli, tmp_path / "models", "--batch", "8")
    assert result.exit_code == 0, result.output
    model = tmp_path / "models" / "fusion"
    files = sorted(str(file.relative_to(model)) for file in model.rglob("*") if file.is_file())
    assert files == ["1/model.py", "1/network.onnx", "config.pbtxt"]
    read = text_format.Parse((model / "config.pbtxt").read_text(), protocol.ModelConfig())
    assert (read.name, read.backend, read.max_batch_size) == ("fusion", "python", 8)
    assert read.HasField("dynamic_batching")
    assert [(entry.name, list(entry.dims)) for entry in (*read.input, *read.output)] == [
        (name, [-1, -1, -1]) for name in ("a", "b", "fused")
    ]
    with Fuser(model / "1" / "network.onnx") as served, Fuser(NANO) as fuser:
        assert {**served.info, "file": ""} == {**fuser.info, "file": ""}
        assert read.parameters["weights"].string_value == fuser.info["weights"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--size", "128"], "--backend python: the model takes images of any size; leave out --size"),
        (["--fp16"], "--fp16 is not for --backend python"),
    ],
)
def test_refusals(cli: CliRunner, tmp_path: Path, given: list[str], message: str) -> None:
    result = export(cli, tmp_path / "models", *given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--backend", "python"], "--backend: is for --triton-server"),
        (["--backend", "tensorrt", "--triton-server", "models"], "--backend tensorrt: is for --target tensorrt"),
    ],
)
def test_backends_that_do_not_fit(cli: CliRunner, given: list[str], message: str) -> None:
    result = cli.invoke(main, [str(NANO), "--target", "onnx", *given])
    assert result.exit_code == 2
    assert message in result.stderr


class Answer:
    """Stands for the server's InferenceResponse."""

    def __init__(self, tensors: Any = (), error: Any = None) -> None:
        self.tensors, self.error = tensors, error


@pytest.fixture
def model(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model in this process, with a stand-in for the module that the server provides."""
    assert export(cli, tmp_path).exit_code == 0
    server: Any = types.ModuleType("triton_python_backend_utils")
    server.get_input_tensor_by_name = lambda request, name: types.SimpleNamespace(as_numpy=lambda: request[name])
    server.Tensor = lambda name, values: (name, values)
    server.TritonError, server.InferenceResponse = str, Answer
    monkeypatch.setitem(sys.modules, server.__name__, server)
    module = importlib.import_module("export.served_model")
    made = module.TritonPythonModel()
    made.initialize({"model_config": "{}", "model_repository": str(tmp_path / "fusion"), "model_version": "1"})
    yield made
    made.finalize()
    sys.modules.pop(module.__name__)


def test_model(model: Any, pairs: list[tuple[Any, Any]]) -> None:
    """Two pairs, an image that is too small, another size, and what should never come: an answer for each request."""
    (a, b), (other_a, other_b) = pairs[0], pairs[1]
    requests = [
        {"a": np.stack([a, a[::-1]]), "b": np.stack([b, b[::-1]])},
        {"a": a[None, :32], "b": b[None, :32]},
        {"a": other_a[None], "b": other_b[None]},
    ]
    broken = {"a": a[None], "b": None}
    first, second, third, fourth = model.execute([*requests, broken])
    assert fourth.error
    assert second.error == "a: is 128x32; the smallest size is 64x64"
    with Fuser(NANO) as fuser:
        ((name, fused),) = first.tensors
        assert name == "fused"
        np.testing.assert_array_equal(fused[0], fuser.fuse(a[..., 0], b))
        np.testing.assert_array_equal(fused[1], fuser.fuse(a[::-1, :, 0], b[::-1]))
        np.testing.assert_array_equal(third.tensors[0][1][0], fuser.fuse(other_a[..., 0], other_b))


def test_server(cli: CliRunner, tmp_path: Path, pairs: list[tuple[Any, Any]]) -> None:
    """200 requests at once, of two sizes, gray and color, and one that cannot be fused."""
    environment()
    client = pytest.importorskip("tritonclient.grpc")
    models, scratch = tmp_path / "models", tmp_path / "server"
    result = export(cli, models, "--batch", "8")
    assert result.exit_code == 0, result.output
    with Fuser(NANO) as fuser:
        wanted = [fuser.fuse(a[..., 0], b[..., 0] if b.shape[2] == 1 else b).reshape(b.shape) for a, b in pairs]

    def inputs(a: Any, b: Any) -> list[Any]:
        made = []
        for name, image in (("a", a), ("b", b)):
            made.append(client.InferInput(name, (1, *image.shape), "UINT8"))
            made[-1].set_data_from_numpy(np.ascontiguousarray(image[None]))
        return made

    with running(models, scratch) as server, client.InferenceServerClient(server.grpc) as connected:
        assert connected.is_model_ready("fusion")

        def ask(number: int) -> Any:
            return connected.infer("fusion", inputs(*pairs[number % len(pairs)])).as_numpy("fused")

        with ThreadPoolExecutor(REQUESTS) as pool:
            fused = list(pool.map(ask, range(REQUESTS)))
        for number, image in enumerate(fused):
            np.testing.assert_array_equal(image[0], wanted[number % len(pairs)])
        with pytest.raises(client.InferenceServerException, match="the smallest size is 64x64"):
            connected.infer("fusion", inputs(*(image[:32] for image in pairs[0])))
        (statistics,) = connected.get_inference_statistics("fusion", as_json=True)["model_stats"]
        batches = {
            int(entry["batch_size"]): int(entry["compute_infer"]["count"]) for entry in statistics["batch_stats"]
        }
        assert sum(size * count for size, count in batches.items()) == REQUESTS + 1
        assert max(batches) <= 8
        assert any(size > 1 for size in batches), batches
        metrics = server.metrics("fusion")
        # The server counts every answer of a model as a success, even one that is an error.
        assert metrics["nv_inference_request_success"] == metrics["nv_inference_count"] == REQUESTS + 1
        assert metrics["nv_inference_exec_count"] == sum(batches.values()) < REQUESTS
