"""The diffusion process: its noise schedule, and noise that is the same everywhere."""
