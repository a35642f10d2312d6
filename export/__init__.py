"""Export of networks to ONNX models and TensorRT engines."""

# Identifies our package: other distributions also have a top-level package of this name.
OWNER = "dmfnet-fast"
