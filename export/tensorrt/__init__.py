"""TensorRT engines and their plugins."""
