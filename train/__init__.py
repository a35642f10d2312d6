"""Training of both stages."""

# Other distributions also use this name; this tells ours.
OWNER = "dmfnet-fast"
