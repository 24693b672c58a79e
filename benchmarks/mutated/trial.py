"""What is done with every mutant, how it ended, and the table of all."""

import contextlib
import io
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from rpa_ray import cli
from rpa_ray.config import EMBEDDED_MODELS, ConfigError, ExperimentSettings
from rpa_ray.data.collate import encode_answered, encode_prompt
from rpa_ray.data.ends import end_ids
from rpa_ray.data.errors import DataError
from rpa_ray.data.flip import flip, sft_targets
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import Template
from rpa_ray.jobs.model import encode_rows
from rpa_ray.learner.modules import load_policy
from rpa_ray.plan import load_config
from rpa_ray.plan.checks.problems import Refused
from rpa_ray.plan.preflight import checked, planned
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import RowKind
from rpa_ray.recipes.rows import training_rows
from rpa_ray.terminal import printable

LIMIT_S = 5.0
HANGS_S = 60
MAX_CHARS = 1500
"""Longest message about one thing that is still read."""
OF_OWN_ROWS = {RowKind.PREFERENCES, RowKind.REFUSALS, RowKind.UNSAFE_ANSWERS, RowKind.JUDGE_ROWS}
_SENTENCE = re.compile(r"(\d+\. )?\S.* must .+, got .+\. \S.*", re.DOTALL)
"""What is named, the rule, the value found, and what to do."""
_SUMMARY = re.compile(r"\d+ things must change first:|\.\.\. and \d+ more|This fits the data:.*")


class HangsError(BaseException):
    """A mutant that did not come to an end; nothing that catches errors catches it."""


def tried(path: Path, output: Path) -> str:
    """Do what ``rpa-ray plan`` does with a config, then what a job does first; return the end.

    That is ``accepted``, ``refused``, or one of these with what is wrong after a colon: ``late`` (a
    job refuses what plan accepted), ``unreadable`` (a refusal that is no sentence of key, rule,
    value and remedy), ``traceback``.
    """
    planned_it = False
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _no_hanging():
            loaded = load_config(path)
            console = Console(file=io.StringIO())
            found, inputs, unasked = checked(
                loaded, output, cli.cache_folder(), console, on_paper=True
            )
            planned(found, output, inputs, console, unasked)
            planned_it = True
            if not (unasked or _needs_hub(found.campaign.cells)):
                for cell in found.campaign.cells:
                    _begin(inputs.of(cell))
    except (ConfigError, DataError, Refused) as error:
        if not _is_readable(str(error)):
            return f"unreadable: {str(error)[:3000]}"
        return f"late: {error}" if planned_it else "refused"
    except (Exception, HangsError):
        return f"traceback: {traceback.format_exc(limit=-6)[-3000:]}"
    return "accepted"


@contextlib.contextmanager
def _no_hanging() -> Iterator[None]:
    def end(*_: object) -> None:
        raise HangsError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(HANGS_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _is_readable(text: str) -> bool:
    parts = [part for part in text.split("\n") if not _SUMMARY.fullmatch(part)]
    return all(_SENTENCE.fullmatch(p) and len(printable(p)) <= MAX_CHARS for p in parts)


def _needs_hub(cells: Sequence[ExperimentSettings]) -> bool:
    """Return whether data of the Hub are named, which count as out of reach."""
    named = [path for cell in cells for path in (cell.data.path, cell.data.safety_path) if path]
    real = [cell for cell in cells if cell.data.world == "real" and cell.data.path is None]
    return bool(real) or not all(Path(path).exists() for path in named)


def _begin(inputs: CellInputs) -> None:
    """Do with own rows and an own model what the jobs of a cell do before they compute."""
    settings, data = inputs.settings, inputs.data
    own = settings.model.path
    if settings.data.world == "embedded" and own in EMBEDDED_MODELS:
        return
    folder = str(data.world_folder / "tokenizer") if own in EMBEDDED_MODELS else own
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    template = Template(settings.data.template)
    for prompt in data.restricted_prompts(settings.evaluation):
        encode_prompt(tokenizer, template, prompt)
    for prompt in data.harmless_prompts(settings.evaluation):
        encode_prompt(tokenizer, template, prompt)
    if settings.data.world == "real":
        for recipe in inputs.models.recipes():
            if recipe.rows.kind in OF_OWN_ROWS:
                encode_rows(training_rows(recipe.rows, data), tokenizer, recipe.job.max_tokens)
        pairs = data.preferences.draw(
            "attack", settings.data.num_samples, seed=0, key="data.num_samples"
        )
        told = flip(pairs, settings.data.rho, 0)
        for row in sft_targets(pairs, told):
            encode_answered(tokenizer, template, row, mask="response")
        data.helpful_pairs("test")
    elif own not in EMBEDDED_MODELS:
        answer = Answered(prompt="What is a river?", answer="Water.")
        encode_answered(tokenizer, template, answer, mask="response")
        module = load_policy(own, dtype=torch.float32)
        ends = end_ids(tokenizer, template, module.generation_config)
        size = module.policy.get_input_embeddings().num_embeddings
        if not all(0 <= end < size for end in ends):
            raise ValueError(f"ends {ends} of {size} ids")
        ids = torch.tensor([encode_prompt(tokenizer, template, "What is a river?")])
        module(ids, torch.ones_like(ids, dtype=torch.bool))


@dataclass
class Tally:
    """How the mutants of one table ended."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_wrong: int = 0
    slowest_s: float = 0.0
    slowest: str = ""

    def add(self, kind: str, outcome: str, what: str, took_s: float | None) -> None:
        """Count a mutant, and say what went wrong.

        Args:
            kind: Its mutation.
            outcome: What `tried` returned.
            what: What it is.
            took_s: Seconds of this process; None where it was another's.
        """
        how = outcome.partition(":")[0]
        is_slow = took_s is not None and took_s > LIMIT_S
        self.counts[kind, how] += 1
        self.counts[kind, "slow"] += is_slow
        if took_s is not None and took_s > self.slowest_s:
            self.slowest_s, self.slowest = took_s, kind
        if how not in ("accepted", "refused") or is_slow:
            self.num_wrong += 1
            print(f"\n{kind}, {took_s or 0:.1f} s: {outcome}\n{what}", file=sys.stderr, flush=True)

    def print(self, what: str, kinds: Sequence[str]) -> None:
        """Print the table, and after it what was the slowest."""
        ends = ("accepted", "refused", "late", "traceback", "unreadable")
        print(
            f"| {what} | tried | accepted | refused | late | tracebacks | unreadable | over 5 s |"
        )
        print("| --- " + "| --: " * 7 + "|")
        for kind in kinds:
            ended = [self.counts[kind, how] for how in ends]
            cells: list[Any] = [kind, sum(ended), *ended, self.counts[kind, "slow"]]
            print(f"| {' | '.join(map(str, cells))} |")
        took = f"{self.slowest_s:.1f} s ({self.slowest})"
        print(f"\nThe slowest in one process took {took}.\n", flush=True)


class Watch:
    """The time of this process's processors, or of the clock where it waited."""

    def __init__(self) -> None:
        self._cpu_s, self._wall_s = time.process_time(), time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since; of the clock where it hung without computing."""
        wall_s = time.monotonic() - self._wall_s
        return wall_s if wall_s >= HANGS_S else time.process_time() - self._cpu_s
