"""Images: files, pairs, sizes, colors, and the rules that every fused pixel obeys."""
