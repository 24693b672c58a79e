"""Summaries and run folders as records, groups of cells, and the gate.

Runs in: as `report`.
Imports: `run_folder`.
Called by: the rest of `report`.
"""
