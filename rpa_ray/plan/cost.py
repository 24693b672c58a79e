"""How long models and cells take here, about: by a timed model, corrected by earlier cells."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from rpa_ray.attacks import ATTACKS
from rpa_ray.attacks.best_of_n import BestOfN
from rpa_ray.cluster.address import cluster_to_join
from rpa_ray.cluster.resources import local_cpus, num_model_threads
from rpa_ray.config import ClusterSettings, ExperimentSettings, RolloutConfig
from rpa_ray.defences import offline_defence, online_defences
from rpa_ray.plan.cells import PlannedCell
from rpa_ray.plan.model_speed import Speeds, machine_key, speeds
from rpa_ray.plugin import Attack, Need, SampledOfflineDefence
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs
from rpa_ray.recipes.embedded import ARCHITECTURE, EMBEDDED_DTYPE
from rpa_ray.recipes.model import ModelKind, ModelRecipe
from rpa_ray.world.tokenizer import VOCABULARY_SIZE

USUAL_PROMPT_TOKENS = 20
ANSWER_FRAC = 0.5
"""Length of an answer by its limit, on the embedded world; another is corrected by its cells."""
USUAL_ANSWER_LIMIT: int = RolloutConfig.model_fields["max_new_tokens"].default
"""Of an answer in tokens, where no setting limits it."""
MAX_SEQUENCES = 256
"""Answers that an engine works on at once."""
UPDATE_S, PUSH_S, CALL_S = 0.008, 0.03, 0.008
"""Optimizer step under DeepSpeed, push of the weights and call of a worker, for 1M parameters
(2026-11-26, as are the others without a date)."""
CHECKPOINTED = 4 / 3
"""Time of passes whose layers are computed once more, by others': a backward pass takes two."""
ENGINE = 0.5
"""Time of a decoding step in an engine by that of the timed model."""
EVALUATION_S, SET_UP_S, START_S = 0.5, 0.7, 20.0
"""Intervals and files of an evaluation; engine and models of a cell; cluster and workers."""
ONE_CELL_A_CORE = 1.49
"""How many times as long a cell takes where there is one for each core, by one with two cores to
itself (2026-11-21)."""
_NUM_REMEMBERED = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CellEstimate:
    """Seconds of one cell, as if nothing ran beside it."""

    evaluation_s: float
    """One evaluation; a cell that trains has two."""
    step_s: float
    """One batch of the attack; 0 where it does not train."""
    num_steps: int
    rest_s: float
    """Setting up, and looks at the policy on the way."""

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole cell."""
        num_evaluations = 2 if self.num_steps else 1
        return num_evaluations * self.evaluation_s + self.num_steps * self.step_s + self.rest_s


def estimate_model(
    recipe: ModelRecipe, cache: Path, num_threads: int, *, checkpointed: bool = False
) -> float | None:
    """Return about how long a model takes to make on an idle machine; None where not estimated.

    ``checkpointed``: whether layers are computed once more in the backward pass.
    """
    found = _speeds_of(recipe, recipe.job.dtype, num_threads, cache)
    if found is None:
        return None
    job = recipe.job
    # Tokens of a row: a text of its length, a question with its answer, or two of those.
    rows = job.batch_size * (2 if recipe.kind in (ModelKind.REWARD, ModelKind.COST) else 1)
    passes, num_moves, sampling = 1.0, 1, 0.0
    if recipe.defence is not None:
        defence = offline_defence(recipe.defence)
        passes, num_moves = defence.passes, defence.num_moves
        if isinstance(defence, SampledOfflineDefence):
            rows *= defence.config.group_size
            sampling = _sampling_s(rows, defence.config.max_new_tokens, found, found)
    train = passes * rows * _row(USUAL_ANSWER_LIMIT) * found.train_s
    train *= CHECKPOINTED if checkpointed else 1
    return SET_UP_S + job.num_steps * (sampling + train + num_moves * UPDATE_S)


def estimate_cell(inputs: CellInputs) -> CellEstimate | None:
    """Return about how long a cell takes on an idle machine; None where that is not estimated.

    Not estimated are GPUs, other machines, a type of weights that is not decided yet, and models
    that are too large to be timed in passing.
    """
    settings, cache = inputs.settings, inputs.cache
    cluster, dtype = settings.cluster, settings.model.dtype
    if cluster_to_join(cluster.address) is not None or cluster.gpus_per_rank or dtype == "auto":
        return None
    threads = cluster.threads_per_process
    policy = _speeds_of(inputs.models.policy, dtype, threads, cache)
    scorer = _embedded(EMBEDDED_DTYPE, threads, cache)
    if policy is None or scorer is None:
        return None
    evaluation, attack = settings.evaluation, ATTACKS[settings.attack.name](settings.attack)
    num, max_new = len(inputs.data.restricted_prompts(evaluation)), evaluation.max_new_tokens
    num_harmless = len(inputs.data.harmless_prompts(evaluation))
    num_sampled, num_judges = evaluation.num_samples * num, len(evaluation.judges)
    row = _row(max_new)
    measuring = (
        EVALUATION_S
        + _decode_s(policy, num + num_sampled + num_harmless, max_new)
        + 2 * num * row * policy.forward_s
        + num_judges * (num + num_sampled) * row * scorer.forward_s
        + (num + 2 * num_harmless) * row * scorer.forward_s
    )
    num_looked_at = min(num, evaluation.num_look_prompts)
    look = _decode_s(policy, num_looked_at, max_new) + PUSH_S + CALL_S
    look += num_judges * num_looked_at * row * scorer.forward_s
    num_steps = attack.num_batches(settings.data.num_samples)
    rest = SET_UP_S + (look * evaluation.num_looks if num_steps else 0.0)
    if isinstance(settings.attack, BestOfN.Config):
        num_asked = min(settings.attack.num_prompts, settings.data.num_samples)
        pool = settings.attack.pool_size * num_asked
        rest += _decode_s(policy, pool, max_new) + 3 * pool * row * scorer.forward_s
    return CellEstimate(
        evaluation_s=measuring,
        step_s=_step_s(settings, attack, policy, scorer) if num_steps else 0.0,
        num_steps=num_steps,
        rest_s=rest,
    )


def _step_s(settings: ExperimentSettings, attack: Attack, policy: Speeds, scorer: Speeds) -> float:
    """Return the seconds of one batch: rollouts where there are some, then the updates."""
    training, config = settings.training, settings.attack
    assert training is not None
    num_samples = settings.data.num_samples
    updates = attack.num_updates(num_samples) / attack.num_batches(num_samples)
    max_new = config.max_new_tokens if isinstance(config, RolloutConfig) else USUAL_ANSWER_LIMIT
    rows = training.batch_size * attack.answers_per_prompt
    seconds = 0.0
    if isinstance(config, RolloutConfig):
        seconds += _sampling_s(rows, max_new, policy, scorer)
    elif Need.TARGETS not in attack.requires:
        rows *= 2  # a pair is two answers
    passes = math.prod(part.passes for part in online_defences(settings.defence))
    train = rows * _row(max_new) * policy.train_s * passes
    train *= CHECKPOINTED if settings.cluster.gradient_checkpointing else 1
    return seconds + updates * (train + UPDATE_S)


def _sampling_s(num_answers: int, max_new_tokens: int, policy: Speeds, scorer: Speeds) -> float:
    """Return the seconds in which a batch is answered, read by two models and scored by two."""
    reading = 2 * num_answers * _row(max_new_tokens) * (policy.forward_s + scorer.forward_s)
    return _decode_s(policy, num_answers, max_new_tokens) + PUSH_S + 2 * CALL_S + reading


def _row(max_new_tokens: int) -> float:
    """Return the tokens of a prompt with its answer."""
    return USUAL_PROMPT_TOKENS + ANSWER_FRAC * max_new_tokens


def _decode_s(speed: Speeds, num: int, max_new_tokens: int) -> float:
    """Return the seconds in which an engine answers prompts: some of them end early."""
    rounds = math.ceil(num / MAX_SEQUENCES)
    steps = rounds * max_new_tokens * speed.decode_step_s
    tokens = num * _row(max_new_tokens)
    return CALL_S + ENGINE * (steps + tokens * speed.decode_token_s)


def _speeds_of(
    model: ModelRecipe | str, dtype: str, num_threads: int, cache: Path
) -> Speeds | None:
    if isinstance(model, str):
        return speeds(Path(model), {}, dtype=dtype, num_threads=num_threads, cache=cache)
    if model.start is not None:
        return _speeds_of(model.start, dtype, num_threads, cache)
    return _embedded(dtype, num_threads, cache)


def _embedded(dtype: str, num_threads: int, cache: Path) -> Speeds | None:
    shapes = {
        **ARCHITECTURE,
        "vocab_size": VOCABULARY_SIZE,
        "num_key_value_heads": ARCHITECTURE["num_attention_heads"],
    }
    return speeds(None, shapes, dtype=dtype, num_threads=num_threads, cache=cache)


def side_by_side(num_at_once: int) -> float:
    """Return how many times as long each of several cells takes as one alone.

    A rank, an engine and a scorer mostly take turns, on two cores now and then not.
    """
    cells_a_core = num_at_once / local_cpus()
    return max(1.0, 1.0 + (ONE_CELL_A_CORE - 1.0) * (2 * cells_a_core - 1))


class History:
    """What earlier cells took on this machine by what was estimated; a file of the cache."""

    def __init__(self, cache: Path) -> None:
        self._path = cache / "speed" / f"history-{machine_key()}.jsonl"
        self._corrections: dict[tuple[str, str, str], float] = {}

    def record(self, settings: ExperimentSettings, estimated_s: float, took_s: float) -> None:
        """Keep how long a cell took whose estimate, uncorrected, was ``estimated_s``."""
        line = {
            "attack": settings.attack.name,
            "dtype": settings.model.dtype,
            "model": settings.model.path,
            "estimated_s": round(estimated_s, 3),
            "took_s": round(took_s, 3),
        }
        self._lines.append(line)
        self._corrections.clear()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def correction(self, settings: ExperimentSettings) -> float:
        """Return by how much estimates of such cells were too short, the median of the last.

        Those of the same type count: of the same attack and model, else of the attack, else all.
        """
        what = (settings.model.dtype, settings.attack.name, settings.model.path)
        if what not in self._corrections:
            self._corrections[what] = self._correction(*what)
        return self._corrections[what]

    def _correction(self, dtype: str, attack_name: str, path: str) -> float:
        alike = [line for line in self._lines if line["dtype"] == dtype]
        attack = [line for line in alike if line["attack"] == attack_name]
        model = [line for line in attack if line["model"] == path]
        counted = (model or attack or alike)[-_NUM_REMEMBERED:]
        ratios = [line["took_s"] / line["estimated_s"] for line in counted]
        return median(ratios) if ratios else 1.0

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        try:
            texts = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        lines = []
        for text in texts:
            try:
                line = json.loads(text)
                if line["estimated_s"] > 0:
                    lines.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # torn by a crash
        return lines


def minutes(seconds: float) -> str:
    """Return a time in words, in seconds below two minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def model_seconds(
    recipe: ModelRecipe, cache: Path, cluster: ClusterSettings, num_at_once: int
) -> float | None:
    """Return about how long a model takes to make beside other work; None where not estimated."""
    threads = num_model_threads(cluster, num_at_once)
    again = cluster.gradient_checkpointing
    seconds = estimate_model(recipe, cache, threads, checkpointed=again)
    return None if seconds is None else seconds * side_by_side(num_at_once)


class CellCosts:
    """About how long the cells take that are to be run, ``num_at_once`` of them side by side."""

    def __init__(
        self, cells: Sequence[PlannedCell], campaign: CampaignInputs, num_at_once: int
    ) -> None:
        self.history = History(campaign.cache)
        self.uncorrected: dict[str, float] = {}
        """Seconds of each cell by the timed model alone, by name; none where not estimated."""
        self.seconds: dict[str, float] = {}
        """The same, corrected by earlier cells."""
        self.step_s: dict[str, float] = {}
        """Seconds of one batch of the attack, corrected."""
        factor = side_by_side(num_at_once)
        for cell in cells:
            estimate = estimate_cell(campaign.of(cell.settings))
            if estimate is not None:
                corrected = factor * self.history.correction(cell.settings)
                self.uncorrected[cell.name] = factor * estimate.seconds
                self.seconds[cell.name] = corrected * estimate.seconds
                self.step_s[cell.name] = corrected * estimate.step_s

    def longest_first(self, cells: Iterable[PlannedCell]) -> list[PlannedCell]:
        """Return the cells in the order of their time, so that none runs alone at the end.

        Those that are not estimated come first, by their samples.
        """
        return sorted(
            cells, key=lambda cell: (-self.seconds.get(cell.name, math.inf), -cell.num_samples)
        )
