"""The report as one HTML page that opens from disk and loads nothing; all files of a report."""

from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from rpa_ray.report import charts, sections
from rpa_ray.report.answers import answers_section
from rpa_ray.report.campaign import Campaign, read_campaign
from rpa_ray.report.markdown import markdown_report, title
from rpa_ray.report.tables import results_csv


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    markdown: Path
    csv: Path


def write_report(folder: Path) -> ReportPaths:
    """Write `report.html`, `report.md` and `results.csv` into a campaign or run folder.

    Files that a failed or old run lacks are left out of the report.

    Raises:
        ValueError: when the folder has neither `summary.json` nor `evaluation.json`, or when a
            file in it is not what a run writes.
    """
    campaign = read_campaign(folder)
    paths = ReportPaths(
        html=folder / "report.html", markdown=folder / "report.md", csv=folder / "results.csv"
    )
    paths.html.write_text(html_page(campaign), encoding="utf-8")
    paths.markdown.write_text(markdown_report(campaign), encoding="utf-8")
    paths.csv.write_text(results_csv(campaign.records), encoding="utf-8")
    return paths


def html_page(campaign: Campaign) -> str:
    """Return the whole page. Its content policy forbids scripts and any request."""
    parts = [
        sections.header(campaign),
        sections.gate(campaign),
        charts.headline_charts(campaign),
        sections.results(campaign),
        charts.training_curves(campaign),
        charts.oracle_labels(campaign),
        charts.times(campaign),
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
