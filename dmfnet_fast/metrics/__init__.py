"""Metrics of fused images, and similarity measures of image pairs."""
