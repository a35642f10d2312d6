"""Table of the targets of `dmfnet-export`. Its options, checks and --help are derived from it."""

from __future__ import annotations

from dmfnet_fast.engines.kinds import OPENVINO, TENSORRT
from dmfnet_fast.engines.openvino_engine import FILE_PRECISIONS
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
        served=Served(
            "tensorrt_plan",
            "model.plan",
            ("float16", "bfloat16", "float32"),
            frozenset({"batch", "plugins", "timing_cache", "workspace", "no_check", "server"}),
            engine_file.for_server,
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
        served=None,
    ),
    Target(
        "onnx",
        OPENVINO,
        "for CPUs, or with --fp16 or --bf16 a graph to build engines from elsewhere",
        ("float32", "float16", "bfloat16", "int8"),
        cpu_precisions=FILE_PRECISIONS,
        options=frozenset({"calibrate", "every_block", "pixels", "server"}),
        check_machine=onnx_file.check_machine,
        write=onnx_file.write,
        served=Served(
            "onnxruntime_onnx",
            "model.onnx",
            ("float32", "float16", "bfloat16"),
            frozenset({"batch", "server"}),
            onnx_file.for_server,
        ),
    ),
)
# The first target is the default.
TARGETS = {target.name: target for target in _ALL}
