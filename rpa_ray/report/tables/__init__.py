"""The tables of a report, one file a kind.

Runs in: as `report`.
Imports: `report.read`.
Called by: `report`.
"""
