"""TensorRT engines, and the plugins in them."""
