"""The figures of a report, as SVG.

Runs in: as `report`.
Imports: `report.read`.
Called by: `report`.
"""
