"""How well images are fused: methods run on pairs, scored by all metrics, compared, and shown."""
