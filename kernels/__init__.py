"""Fused GPU operations, one a file."""
