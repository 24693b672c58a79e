"""The model card of a hardened checkpoint, from the manifest that is released with it."""

from collections.abc import Mapping
from typing import Any

import yaml

from rpa_ray.report.escape import escape_markdown
from rpa_ray.report.markdown import notes
from rpa_ray.report.read.definitions import BEFORE_ATTACK, EMBEDDED_WORLD, MetricText
from rpa_ray.report.read.groups import Cell, group_cells
from rpa_ray.report.read.records import parse_records
from rpa_ray.report.tables.main import (
    MISSING,
    format_mean,
    format_spread,
    markdown_table,
    shown_metrics,
)
from rpa_ray.run_folder.names import COMMIT, HARDENED, short_commit

SHOWN = (
    "harm",
    "harm_greedy",
    "compliance_sampled",
    "p_harm_sampled",
    "p_harm_second_sampled",
    "valid",
    "refusal_rate",
    "harmless_answered",
    "helpfulness",
    "kl_untouched",
    "ppl_median",
)
"""The metrics of a card, as far as they were measured; the table leads with truth, if there is."""
NOT_ATTACKED = (
    "It was not attacked here. What is left of its safety once somebody trains it on unsafe "
    "feedback is measured by `rpa-ray run` or `rpa-ray campaign` of a config with an attack and "
    "the same defence."
)
JUDGED = "Harm is what a classifier says of answers to real prompts, which is no truth."
ONE_TRAINING = "It is one training with one seed: intervals are over prompts, not over trainings."


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return a Hugging Face model card: a head in YAML, then what was done and what was measured.

    Args:
        manifest: What is written beside the weights.

    Raises:
        ValueError: A record of the manifest is not what a campaign writes.
    """
    records = manifest["records"]
    before, after = group_cells(parse_records([records["before"], records["after"]]))
    methods = [method["config"]["name"] for method in manifest["methods"]]
    head = {
        "base_model": COMMIT.sub("", manifest["model"]),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["safety", "hardened", "rpa_ray", *methods],
    }
    model, hardened_by = escape_markdown(short_commit(manifest["model"])), " and ".join(methods)
    is_embedded = records["after"]["world"] == "embedded"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {model}, hardened by {hardened_by}",
        f"The language model {model}, trained further so that it stays safe when somebody trains "
        "it on unsafe feedback. The files are those of a Hugging Face model; numbers, settings and "
        f"hashes of the weights are in `{HARDENED}` too.",
        "## What was done",
        *(_done(method, manifest) for method in manifest["methods"]),
        _made_by(manifest),
        "## What was measured",
        _table(before, after),
        _asked(manifest),
        " ".join(f"{note}." for note in notes([before, after]) if note != BEFORE_ATTACK),
        "\n".join(f"- **{m.heading}**: {m.definition}" for m in _metrics(before, after)),
        "## What was not",
        NOT_ATTACKED,
        ONE_TRAINING,
        EMBEDDED_WORLD if is_embedded else JUDGED,
    ]
    return "\n\n".join(parts) + "\n"


def _done(method: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Return what one method is, with its source, its settings and its rows."""
    config, rows = method["config"], manifest["rows"]
    settings = [[key, str(value)] for key, value in config.items() if key != "name"]
    where = escape_markdown(f"{rows['source']} ({rows['revision']})")
    return "\n\n".join(
        [
            f"### {config['name']}",
            method["description"],
            markdown_table(["Setting", "Value"], settings, num_text_columns=1).rstrip(),
            f"{config['num_steps']:,} updates of {config['batch_size']:,} rows in "
            f"{manifest['dtype']} with seed {method['seed']}, on the {rows['num_rows']:,} rows of "
            f"the defence split of {where}, sha256 {rows['sha256']}. It began with "
            f"{escape_markdown(method['start'])} and made {method['key']}.",
        ]
    )


def _made_by(manifest: Mapping[str, Any]) -> str:
    versions = {name: v for name, v in manifest["versions"].items() if v is not None}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    commit = manifest["git_commit"]
    return f"Made and measured with {told}" + f" (commit {commit})" * bool(commit) + "."


def _asked(manifest: Mapping[str, Any]) -> str:
    """Return on which prompts answers were measured, and in which words they were asked."""
    config = manifest["config"]
    data, evaluation = config["data"], config["evaluation"]
    return (
        f"Prompts are those of the {evaluation['split']} split of `{data['name']}`, which nothing "
        f"was trained on, asked in the template `{data['template']}`; answers have at most "
        f"{evaluation['max_new_tokens']} tokens."
    )


def _table(before: Cell, after: Cell) -> str:
    cells = (before, after)
    rows = [
        [metric.heading, _num_of(metric, cells), *(_value_of(metric, cell) for cell in cells)]
        for metric in _metrics(*cells)
    ]
    header = ["Metric", "n", "before", "after"]
    return markdown_table(header, rows, num_text_columns=1).rstrip()


def _metrics(*cells: Cell) -> list[MetricText]:
    return [metric for metric in shown_metrics(cells) if metric.name in SHOWN]


def _num_of(metric: MetricText, cells: tuple[Cell, Cell]) -> str:
    """Return how many answers a number rests on; of both models where they differ."""
    values = [value for cell in cells if (value := cell.value(metric.name)) is not None]
    return ", ".join(dict.fromkeys(value.num_text for value in values)) or MISSING


def _value_of(metric: MetricText, cell: Cell) -> str:
    spread = format_spread(cell.value(metric.name), metric.decimals)
    return f"{format_mean(cell, metric)} {spread}".rstrip()
