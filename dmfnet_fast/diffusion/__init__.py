"""The diffusion process: noise schedules, and noise that is reproducible on every platform."""
