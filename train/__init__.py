"""Training of both stages."""

# Distinguishes this package from those of other distributions with the same name.
OWNER = "dmfnet-fast"
