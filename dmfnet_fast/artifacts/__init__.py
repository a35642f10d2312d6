"""Exported files: atomic writing, metadata, and verification against the trained network."""
