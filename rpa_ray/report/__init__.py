"""Reports of campaigns and runs: tables (Markdown, CSV, terminal) and one self-contained page."""

from rpa_ray.report.html import ReportPaths, write_report
from rpa_ray.report.tables.main import results_table, terminal_table

__all__ = [
    "ReportPaths",
    "results_table",
    "terminal_table",
    "write_report",
]
