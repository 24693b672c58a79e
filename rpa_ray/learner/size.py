"""Sizes of the buffers that DeepSpeed takes for a training; told without a large import."""

BUCKET_ELEMENTS = 500_000_000
"""Most gradients that ZeRO sums over ranks at once (DeepSpeed's default)."""
LIVE_PARAMETERS = 1_000_000_000
"""Most parameters that ZeRO-3 has gathered at once (DeepSpeed's default)."""
STEPPED_MASTERS = 1_000_000_000
"""Most masters of a rank that ZeRO-3 steps at once (DeepSpeed's default)."""
