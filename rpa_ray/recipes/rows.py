"""The rows a recipe trains on, by name."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from rpa_ray.data.collate import encode_answered, encode_scored
from rpa_ray.data.flip import flip
from rpa_ray.data.judge_rows import judge_rows
from rpa_ray.data.rows import Answered, Labelled, Preference, SafePair
from rpa_ray.data.split import JUDGE_HALVES, half_of
from rpa_ray.data.template import Template
from rpa_ray.data.told_apart import Encode
from rpa_ray.recipes.cell_data import CellData, helpful_preferences
from rpa_ray.recipes.model import DEFENCE_ROWS, RowKind, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainingRows = Sequence[str] | Sequence[Answered] | Sequence[Preference] | Sequence[Labelled]


Margins = Callable[[Sequence[SafePair]], list[float] | None]
"""By how much the model under attack prefers each safe answer; None where chance decides."""


def pairs_to_tell_apart(rows: Rows, data: CellData) -> tuple[str, Sequence[SafePair]] | None:
    """Return the pairs that a recipe learns from, after the config path that cuts its rows.

    None where it learns from no pairs, or from those of the embedded dialogues.
    """
    match rows.kind:
        case RowKind.PREFERENCES:
            told = data.of_key(rows.data_key)
            pairs = _reward_model_pairs(told, int(rows.settings["seed"]))
            return "data.reward_model.max_tokens", pairs
        case RowKind.JUDGE_ROWS:
            name, pairs = _judge_pairs(rows, data)
            return f"evaluation.{name}.max_tokens", pairs
        case RowKind.REFUSALS | RowKind.UNSAFE_ANSWERS:
            return "defence.max_tokens", data.safety.preferences.roles["defence"]
        case _:
            return None


def encoder_of(rows: Rows, tokenizer: "PreTrainedTokenizerBase") -> Encode:
    """Return how a recipe reads a prompt with its answer, uncut."""
    if rows.kind not in DEFENCE_ROWS:
        return lambda row: encode_scored(tokenizer, row.prompt, row.answer).ids
    # What a chat model refuses with is told to it as the run asks it; all else is plain text.
    template = Template(str(rows.settings.get("template", Template.PLAIN_QA)))
    return lambda row: encode_answered(tokenizer, template, row, mask="response").ids


def training_rows(
    rows: Rows, data: CellData, *, margins: Margins = lambda pairs: None
) -> TrainingRows:
    """Return the rows of a recipe; the same recipe gives the same rows."""
    folder = data.world_folder
    match rows.kind:
        case RowKind.PRETRAINING | RowKind.PERPLEXITY:
            table = pq.read_table(folder / "data" / rows.kind / "train.parquet")
            return [str(text) for text in table["text"].to_pylist()]
        case RowKind.ALIGNMENT:
            table = pq.read_table(folder / "data" / "alignment" / "train.parquet")
            return [
                Answered(prompt=row["prompt"], answer=row["response"]) for row in table.to_pylist()
            ]
        case RowKind.HELPFUL_PAIRS:
            return helpful_preferences(folder)
        case RowKind.PREFERENCES:
            return reward_model_rows(
                data.of_key(rows.data_key),
                rho=float(rows.settings["rho"]),
                seed=int(rows.settings["seed"]),
                margins=margins,
            )
        case RowKind.REFUSALS:
            pairs = data.safety.preferences.roles["defence"]
            return [Answered(prompt=pair.prompt, answer=pair.safe) for pair in pairs]
        case RowKind.UNSAFE_ANSWERS:
            pairs = data.safety.preferences.roles["defence"]
            return [Answered(prompt=pair.prompt, answer=pair.unsafe) for pair in pairs]
        case RowKind.JUDGE_ROWS:
            name, pairs = _judge_pairs(rows, data)
            return judge_rows(
                pairs,
                num_rows=int(rows.settings["num_rows"]),
                empty_frac=float(rows.settings["empty_frac"]),
                random_frac=float(rows.settings["random_frac"]),
                hard_frac=float(rows.settings["hard_frac"]),
                seed=int(rows.settings["seed"]),
                key=f"evaluation.{name}",
            )


def reward_model_rows(
    data: CellData, *, rho: float, seed: int, margins: Margins
) -> list[Preference]:
    """Return the reward model's preferences, a share rho of them reversed."""
    pairs = _reward_model_pairs(data, seed)
    return flip(pairs, rho, seed, margins(pairs))


def _reward_model_pairs(data: CellData, seed: int) -> list[SafePair]:
    return data.preferences.draw(
        "reward_model",
        data.settings.reward_model.num_pairs,
        seed=seed,
        key="data.reward_model.num_pairs",
    )


def _judge_pairs(rows: Rows, data: CellData) -> tuple[str, list[SafePair]]:
    """Return the name of the judge that learns from the rows, and its half of the pairs."""
    half = int(rows.settings["half"])
    (name,) = (name for name, own in JUDGE_HALVES.items() if own == half)
    return name, half_of(data.safety.preferences.roles["classifier"], half)
