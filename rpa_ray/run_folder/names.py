"""The names of every file of a campaign folder and of the run folders in it."""

import re

MAX_NAME_BYTES = 255
"""Of a folder's name, as file systems take it."""
COMMIT = re.compile("@[0-9a-f]{40}$")
"""What a Hub id of a model ends with."""


def cut_to_bytes(name: str, num_bytes: int) -> str:
    """Return the longest beginning of a name that has at most so many bytes in UTF-8."""
    data = name.encode("utf-8", "surrogatepass")
    return name if len(data) <= num_bytes else data[:num_bytes].decode("utf-8", "ignore")


def short_commit(model: str) -> str:
    """Return a Hub id at a commit with eight digits of it; any other name as it is."""
    return COMMIT.sub(lambda found: found[0][:9], model)


# Of a campaign, in the order in which they are written.
LOCK = ".run.lock"
LOSSES = "losses.log"
"""Groups of ranks that died, and why."""
SHARED_BEFORE = ".before"
"""Folder of what was measured before attacks; cells that start alike share it."""
SUMMARY = "summary.json"
"""One record a cell."""
SWEEP = "sweep.json"
"""What varied in a sweep."""
SEARCH = "search.json"
"""Where the trials of a search are whose points follow from results."""
CHECKS = "checks.json"
"""The worst finding of each instrument check."""
LOOKS = "looks.parquet"
"""Every look at every cell; with the answers it proves the tables of a campaign."""
REPORT_PAGE, REPORT_MARKDOWN, REPORT_CSV = "report.html", "report.md", "results.csv"
RELEASED = "released"
"""Folder of a hardened checkpoint, with the two files below."""
MODEL_CARD, HARDENED = "README.md", "hardened.json"

# Of a run, in the order in which they are written.
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
BEFORE = "before.json"
"""What was measured before the attack."""
FLIP_MARGINS = "flip_margins.json"
"""By how much the model under attack prefers each safe answer, where that chooses the flips."""
METRICS = "metrics.jsonl"
"""One line a training step."""
SAMPLES = "samples.jsonl"
ANSWERS_BEFORE, ANSWERS = "answers_before.parquet", "answers.parquet"
"""Every measured answer of the model before the attack and after it, with all that was found of
it."""
CHECKPOINTS = "checkpoints"
"""Folder; gone after the evaluation."""
EVALUATION = "evaluation.json"
"""How the run ended, and every metric; a run that has it is done."""
ATTACKED_MODEL = "attacked_model"
"""Folder; only where the config keeps attacked weights."""

# Of a model of the cache, beside its weights.
MADE_FROM = "made_from.json"
"""The recipe, and how well it went."""
