"""How good a fused image is, and how alike two images are."""
