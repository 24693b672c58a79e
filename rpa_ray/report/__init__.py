"""Reads run folders; writes tables (Markdown, CSV, terminal), figures and one page.

Runs in: driver, or any machine that has the folder.
Imports: `run_folder`, `evaluation.statistics`; no torch.
Called by: `campaign`, `cli`.
"""

from rpa_ray.report.html import ReportPaths, write_report
from rpa_ray.report.tables.main import results_table, terminal_table

__all__ = [
    "ReportPaths",
    "results_table",
    "terminal_table",
    "write_report",
]
