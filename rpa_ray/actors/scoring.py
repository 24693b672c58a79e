"""The scoring worker: keeps several judging models warm in one process, by name.

The class is plain Python and is made remote in ``pools``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rpa_ray.actors.status import WorkerStatus, own_status
from rpa_ray.data.hub_model import model_folder

if TYPE_CHECKING:
    from rpa_ray.scoring import Scorer
    from rpa_ray.scoring.perplexity import AnswerNll

ScorerKind = Literal["reward", "harm_probability", "perplexity"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerSpec:
    """What a scorer is made from."""

    path: str
    """Folder with model and tokenizer in Hugging Face's format, or a Hub id at a commit, of which
    each worker has its own copy."""
    kind: ScorerKind
    template: str
    """Text that the model reads, with ``{prompt}`` and ``{answer}``."""
    max_length: int = 512
    """Tokens; longer texts lose their end."""
    batch_size: int = 64


class ScoringWorker:
    """Scores pairs of texts with models that it loads once."""

    def __init__(self) -> None:
        self._scorers: dict[str, tuple[ScorerSpec, Scorer]] = {}

    def status(self) -> WorkerStatus:
        """Return where the worker lives."""
        return own_status()

    def prewarm(self) -> None:
        """Import what loads models, so that the first ``load`` finds it there (some seconds)."""
        from transformers import AutoModelForSequenceClassification  # noqa: F401

    def load(self, name: str, spec: ScorerSpec) -> None:
        """Have the model of ``spec`` ready under ``name``; a no-op where it is.

        Raises:
            ValueError: If the model does not fit its kind.
        """
        self._scorer(name, spec)

    def unload(self, name: str) -> None:
        """Drop a model, if it is there."""
        self._scorers.pop(name, None)

    def score(self, name: str, spec: ScorerSpec, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return one score for each (prompt, answer) pair, loading the model where needed."""
        return self._scorer(name, spec).score(pairs)

    def answer_nll(
        self, name: str, spec: ScorerSpec, pairs: Sequence[tuple[str, str]]
    ) -> list["AnswerNll"]:
        """Return each answer's negative log-likelihood under a perplexity model.

        Raises:
            ValueError: If the model called ``name`` is of another kind.
        """
        from rpa_ray.scoring.perplexity import PerplexityScorer

        scorer = self._scorer(name, spec)
        if not isinstance(scorer, PerplexityScorer):
            raise ValueError(
                f"scorer {name!r} must be of kind 'perplexity', got {spec.kind!r}. Call score."
            )
        return scorer.answer_nll(pairs)

    def _scorer(self, name: str, spec: ScorerSpec) -> "Scorer":
        known = self._scorers.get(name)
        if known is None or known[0] != spec:
            self._scorers[name] = (spec, build_scorer(spec))
        return self._scorers[name][1]


def build_scorer(spec: ScorerSpec) -> "Scorer":
    """Return the scorer of a spec, on the GPU where this process has one."""
    import torch

    from rpa_ray.scoring.perplexity import PerplexityScorer
    from rpa_ray.scoring.sequence_classifier import SequenceClassifierScorer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(model_folder(spec.path))
    if not (path / "config.json").is_file():
        raise ValueError(
            f"path must be a folder with a config.json, got {spec.path}. "
            "Make the model first, or give a folder that this machine can read."
        )
    if spec.kind == "perplexity":
        return PerplexityScorer(
            path,
            template=spec.template,
            max_length=spec.max_length,
            batch_size=spec.batch_size,
            device=device,
        )
    return SequenceClassifierScorer(
        path,
        mode=spec.kind,
        template=spec.template,
        max_length=spec.max_length,
        batch_size=spec.batch_size,
        device=device,
    )
