"""From the optimised graph to engine files."""

DISTRIBUTION = "dmfnet-fast"  # other distributions may have a package of this name
