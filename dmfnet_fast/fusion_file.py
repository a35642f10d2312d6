"""What an exported fusion network looks like from outside: what writes such files and what opens them agree here."""

from __future__ import annotations

FORMAT = "dmfnet-fast 1"
KIND = "fusion"  # in the metadata, beside the kinds of weights files
INPUTS = ("a", "b", "noise")
OUTPUT = "fused"
