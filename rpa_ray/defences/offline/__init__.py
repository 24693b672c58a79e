"""Offline defences: each trains the model before it is attacked.

Runs in: learner ranks.
Imports: what `defences` may.
Called by: the table in `defences`.
"""
