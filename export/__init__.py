"""From the optimised graph to engine files."""
