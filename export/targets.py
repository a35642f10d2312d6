"""Table of the targets of `dmfnet-export`. Its options, checks and --help are derived from it."""

from __future__ import annotations

from dmfnet_fast.engines.kinds import OPENVINO, TENSORRT
from dmfnet_fast.engines.openvino_engine import FILE_PRECISIONS
from export import python_backend, triton_server, web
from export.onnx import onnx_file
from export.request import Served, Target
from export.tensorrt import engine_file

_ALL = (
    Target(
        "tensorrt",
        TENSORRT,
        "for the NVIDIA GPU of this machine, Jetson or datacenter",
        ("float16", "bfloat16", "float32"),
        cpu_precisions=(),
        options=frozenset({"batch", "plugins", "pixels", "timing_cache", "workspace", "no_check", "server"}),
        check_machine=engine_file.check_machine,
        write=engine_file.write,
        served=(
            Served(
                "tensorrt",
                ("float16", "bfloat16", "float32"),
                frozenset({"batch", "plugins", "timing_cache", "workspace", "no_check", "server"}),
                one_size=True,
                write=triton_server.writer("tensorrt_plan", "model.plan", engine_file.for_server),
            ),
        ),
    ),
    Target(
        "tensorrt-rtx",
        TENSORRT,
        "for RTX GPUs, built on any machine",
        ("float16", "bfloat16", "float32"),
        cpu_precisions=(),
        options=frozenset({"batch", "gpu", "pixels", "no_check"}),
        check_machine=engine_file.check_machine,
        write=engine_file.write,
        served=(),
    ),
    Target(
        "onnx",
        OPENVINO,
        "for CPUs, by OpenVINO, or with --fp16 or --bf16 a graph to build engines from elsewhere",
        ("float32", "float16", "bfloat16", "int8"),
        cpu_precisions=FILE_PRECISIONS,
        options=frozenset({"calibrate", "every_block", "pixels", "server"}),
        check_machine=onnx_file.check_machine,
        write=onnx_file.write,
        served=(
            Served(
                "onnxruntime",
                ("float32", "float16", "bfloat16"),
                frozenset({"batch", "server"}),
                one_size=True,
                write=triton_server.writer("onnxruntime_onnx", "model.onnx", onnx_file.for_server),
            ),
            Served(
                "python",
                FILE_PRECISIONS,
                frozenset({"batch", "calibrate", "every_block", "server"}),
                one_size=False,
                write=python_backend.write,
            ),
        ),
    ),
    Target(
        "web",
        None,
        "a page for browsers, a folder or with --single-file one file",
        ("float32",),
        cpu_precisions=("float32",),
        options=frozenset({"single_file"}),
        check_machine=web.check_machine,
        write=web.write,
        served=(),
    ),
)
# The first target is the default.
TARGETS = {target.name: target for target in _ALL}
