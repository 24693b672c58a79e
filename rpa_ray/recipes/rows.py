"""The rows a recipe trains on, by name."""

from collections.abc import Callable, Sequence

import pyarrow.parquet as pq

from rpa_ray.data.flip import flip
from rpa_ray.data.judge_rows import judge_rows
from rpa_ray.data.rows import Answered, Labelled, Preference, SafePair
from rpa_ray.data.split import JUDGE_HALVES, half_of
from rpa_ray.recipes.cell_data import CellData, helpful_preferences
from rpa_ray.recipes.model import RowKind, Rows

TrainingRows = Sequence[str] | Sequence[Answered] | Sequence[Preference] | Sequence[Labelled]


Margins = Callable[[Sequence[SafePair]], list[float] | None]
"""By how much the model under attack prefers each safe answer; None where chance decides."""


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
                data,
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
            half = int(rows.settings["half"])
            (name,) = (name for name, own in JUDGE_HALVES.items() if own == half)
            return judge_rows(
                half_of(data.safety.preferences.roles["classifier"], half),
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
    pairs = data.preferences.draw(
        "reward_model",
        data.settings.reward_model.num_pairs,
        seed=seed,
        key="data.reward_model.num_pairs",
    )
    return flip(pairs, rho, seed, margins(pairs))
