"""From the optimized graph to engine files."""

# Other distributions also use this name; this tells ours.
OWNER = "dmfnet-fast"
