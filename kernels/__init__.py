"""Fused GPU operations, one a file: see README.md beside this file."""

# Other distributions also use this name; this tells ours.
OWNER = "dmfnet-fast"
