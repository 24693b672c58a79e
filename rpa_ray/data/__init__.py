"""Data sets: load, check, pair, flip, split, lay out as text, and batch.

Runs in: driver and learner ranks.
Imports: `config`; only `data.collate` loads torch.
Called by: `recipes`, `plan`, `jobs`.
"""
