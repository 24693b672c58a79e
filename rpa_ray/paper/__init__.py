"""The papers' tables as data, and ours beside them.

Runs in: a command of its own.
Imports: `evaluation.statistics`.
Called by: nobody: `python -m rpa_ray.paper.compare`.
"""
