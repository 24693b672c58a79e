"""The report as one HTML page that opens from disk and loads nothing; all files of a report."""

from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from rpa_ray.report import sections
from rpa_ray.report.answers import answers_section
from rpa_ray.report.figures import charts
from rpa_ray.report.figures.proxy import proxy_charts
from rpa_ray.report.markdown import markdown_report, side_tables, title
from rpa_ray.report.read.before import with_before
from rpa_ray.report.read.folder import Campaign, read_campaign
from rpa_ray.report.tables.best_of_n import best_of_n_section
from rpa_ray.report.tables.differences import differences_table, pairs_table
from rpa_ray.report.tables.main import results_csv
from rpa_ray.report.tables.resistance import resistance_table
from rpa_ray.report.tables.response import response_section
from rpa_ray.report.tables.rho import points_table, rho_lines, rho_section
from rpa_ray.report.tables.search import search_section
from rpa_ray.report.tables.side import side_table_csv, side_table_html
from rpa_ray.report.tables.speed import throughput_table
from rpa_ray.report.tables.worst_case import worst_cases
from rpa_ray.run_folder.files import write_text
from rpa_ray.run_folder.names import REPORT_CSV, REPORT_MARKDOWN, REPORT_PAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    markdown: Path
    csv: Path


def write_report(folder: Path) -> ReportPaths:
    """Write `report.html`, `report.md` and `results.csv` into a campaign or run folder.

    A side table that applies gets a CSV file of its own name; of one that no longer does, the file
    is deleted. Files that a failed or old run lacks are left out of the report.

    Raises:
        ValueError: when the folder has neither `summary.json` nor `evaluation.json`, or when a
            file in it is not what a run writes.
    """
    campaign = read_campaign(folder)
    paths = ReportPaths(
        html=folder / REPORT_PAGE, markdown=folder / REPORT_MARKDOWN, csv=folder / REPORT_CSV
    )
    write_text(paths.html, html_page(campaign))
    write_text(paths.markdown, markdown_report(campaign))
    write_text(paths.csv, results_csv(with_before(campaign.records)))
    for table in side_tables(campaign):
        path = folder / f"{table.name}.csv"
        if table.rows:
            write_text(path, side_table_csv(table))
        else:
            path.unlink(missing_ok=True)
    return paths


def html_page(campaign: Campaign) -> str:
    """Return the whole page. Its content policy forbids scripts and any request."""
    parts = [
        sections.header(campaign),
        sections.gate(campaign),
        response_section(campaign),
        search_section(campaign),
        rho_section(campaign),
        charts.headline_charts(campaign),
        sections.results(campaign),
        side_table_html(differences_table(campaign)),
        side_table_html(pairs_table(campaign)),
        side_table_html(worst_cases(campaign.groups)),
        side_table_html(points_table(rho_lines(campaign.cells))),
        best_of_n_section(campaign),
        charts.training_curves(campaign),
        proxy_charts(campaign),
        charts.oracle_labels(campaign),
        charts.times(campaign),
        side_table_html(resistance_table(campaign)),
        side_table_html(throughput_table(campaign)),
        answers_section(campaign),
        sections.definitions(campaign),
        sections.reproduction(campaign),
        sections.settings(campaign),
    ]
    files = resources.files("rpa_ray.report")
    template = Template((files / "page.html").read_text("utf-8"))
    return template.substitute(
        title=escape(title(campaign)),
        style=(files / "page.css").read_text("utf-8"),
        body="\n".join(part for part in parts if part),
    )
