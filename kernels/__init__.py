"""Fused GPU operations, one per file; see README.md in this folder."""

# Distinguishes this package from those of other distributions with the same name.
OWNER = "dmfnet-fast"
