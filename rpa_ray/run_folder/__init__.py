"""The run folder: its files, who writes and who reads them.

Runs in: driver and learner ranks.
Imports: nothing of ours.
Called by: `campaign`, `jobs`, `report`.
"""
