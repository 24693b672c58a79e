"""Data sets: load, check, pair, flip, split, lay out as text, and batch.

Only ``rpa_ray.data.collate`` loads torch.
"""
