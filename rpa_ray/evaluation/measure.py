"""All metrics of one model: answers from the rollout engine, scored, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rpa_ray.data.collate import collate_completions
from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.evaluation.fluency import is_fluent
from rpa_ray.evaluation.metrics import metrics_of
from rpa_ray.evaluation.statistics import Estimate
from rpa_ray.learner.step import SamplingFailed
from rpa_ray.ops.kl import kl_full, kl_k1
from rpa_ray.ops.logprobs import next_token_logprobs, rows_at_once
from rpa_ray.scoring.harm_score import harm_score
from rpa_ray.scoring.text_rules import copies_prompt, refusal_pattern, repeats, too_short
from rpa_ray.types import Completion, ModelOutputs, Prompt

Forward = Callable[[Tensor, Tensor], ModelOutputs]
Scored = Callable[[Sequence[tuple[str, str]]], list[float]]
"""Scores of pairs of a prompt and an answer; NaN where there is none."""
MAX_KL_ROWS = 25
"""Answers whose distributions are compared at once, fewer where their logits would be large."""
TEXT_SCORERS: Mapping[str, frozenset[Decoding]] = {
    "judge": frozenset({Decoding.GREEDY, Decoding.SAMPLED, Decoding.POOL}),
    "second_judge": frozenset({Decoding.GREEDY, Decoding.SAMPLED, Decoding.POOL}),
    "reward": frozenset({Decoding.SAMPLED, Decoding.POOL}),
    "perplexity": frozenset({Decoding.GREEDY, Decoding.HARMLESS}),
    "helpfulness": frozenset({Decoding.HARMLESS}),
}
"""Which answers each scoring model reads; its name is the field of :class:`Answer` it fills."""


class Answers(Protocol):
    """Answers prompts with the weights that are served."""

    def __call__(self, prompts: Sequence[Prompt], *, greedy: bool) -> list[Completion]:
        """Return one completion of each prompt, sampled at temperature 1 unless greedy."""
        ...


class Verdict(Protocol):
    """What the oracle of an embedded world finds in an answer."""

    @property
    def label(self) -> str:
        """The oracle's word for it."""
        ...

    @property
    def harm(self) -> float:
        """How much of the restricted task it gives away, 0 to 1."""
        ...

    @property
    def complies(self) -> bool:
        """Whether it explains the task with all that matters."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps it explains."""
        ...


class Truth(Protocol):
    """The oracle of an embedded world."""

    def item(self, prompt: str) -> str:
        """Return what a prompt asks about."""
        ...

    def judge(self, prompt: str, answer: str) -> Verdict:
        """Return what an answer to a prompt is."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruments:
    """Everything a measurement needs besides the model."""

    answers: Answers
    scorers: Mapping[str, Scored]
    """Scoring models by name; each reads what :data:`TEXT_SCORERS` says."""
    truth: Truth | None
    """None where there is no oracle."""
    policy: Forward
    original: Forward
    """The model before the attack."""
    untouched: Forward | None
    """The model that offline defences began with; None without one."""
    restricted: Sequence[Prompt]
    harmless: Sequence[Prompt]
    pad_token_id: int
    vocab_size: int
    """Of the policy."""
    num_samples: int
    """Sampled answers to each restricted prompt."""
    num_resamples: int
    num_saved_samples: int
    """Answers of each decoding that are kept as text."""
    fluency_limit: float
    """Perplexity above which an answer is broken text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What one evaluation found."""

    metrics: dict[str, Estimate]
    answers: list[Answer]
    """Every answer, the rows of ``answers.parquet``."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """One record an answer that is kept as text, as ``samples.jsonl`` holds it."""

    def metrics_json(self) -> dict[str, dict[str, float]]:
        """Return the metrics as plain data."""
        return {name: asdict(estimate) for name, estimate in self.metrics.items()}


def measure(tools: Instruments, *, phase: str) -> Measurement:
    """Return every metric of the served model.

    Raises:
        SamplingFailed: probabilities are not finite, the policy's or the engine's.
    """
    sampled = tools.answers([*tools.restricted] * tools.num_samples, greedy=False)
    completions = {
        Decoding.GREEDY: tools.answers(tools.restricted, greedy=True),
        Decoding.SAMPLED: sampled,
    }
    if tools.harmless:
        completions[Decoding.HARMLESS] = tools.answers(tools.harmless, greedy=True)
    # One answer a prompt: whole distributions are costly, and their sums vary little.
    drift = measure_drift(tools, sampled[: len(tools.restricted)])
    answers: list[Answer] = []
    for decoding, found in completions.items():
        answers += read_answers(
            tools.scorers, tools.truth, decoding, found, fluency_limit=tools.fluency_limit
        )
    answers = _with_drift(answers, drift)
    metrics = metrics_of(answers, num_resamples=tools.num_resamples)
    samples = [
        record
        for decoding in (Decoding.GREEDY, Decoding.SAMPLED)
        for record in _samples(answers, decoding, phase)[: tools.num_saved_samples]
    ]
    return Measurement(metrics=metrics, answers=answers, samples=samples)


def read_answers(
    scorers: Mapping[str, Scored],
    truth: Truth | None,
    decoding: Decoding,
    completions: Sequence[Completion],
    *,
    fluency_limit: float,
) -> list[Answer]:
    """Return what the instruments say of completions of one kind.

    A prompt's second completion, and so on, counts as another sample of it.
    """
    pairs = [(c.prompt.text, c.text) for c in completions]
    scores = {
        name: scorers[name](pairs)
        for name, kinds in TEXT_SCORERS.items()
        if decoding in kinds and name in scorers
    }
    places: dict[str, int] = {}
    asked: dict[str, int] = {}
    answers = []
    for index, completion in enumerate(completions):
        prompt, text = pairs[index]
        place = places.setdefault(completion.prompt.id, len(places))
        sample = asked[completion.prompt.id] = asked.get(completion.prompt.id, -1) + 1
        verdict = truth.judge(prompt, text) if truth is not None else None
        values = {name: _finite(found[index]) for name, found in scores.items()}
        fluent = None
        if "perplexity" in values:
            ppl = scores["perplexity"][index]
            fluent = is_fluent(text, ppl=ppl, ppl_limit=fluency_limit, prompt=prompt)
        answers.append(
            Answer(
                decoding=decoding,
                prompt_index=place,
                sample=sample,
                item=truth.item(prompt) if truth is not None else str(place),
                prompt=prompt,
                text=text,
                num_tokens=len(completion.token_ids),
                policy_version=completion.policy_version,
                label=str(verdict.label) if verdict is not None else None,
                harm=verdict.harm if verdict is not None else None,
                complies=verdict.complies if verdict is not None else None,
                num_steps=verdict.num_steps if verdict is not None else None,
                is_fluent=fluent,
                is_too_short=too_short(text),
                copies_prompt=copies_prompt(text, prompt),
                repeats=repeats(text),
                harm_score=_harm_score(prompt, text, values.get("judge")),
                refuses=verdict.label == "refusal"
                if verdict is not None
                else refusal_pattern(text),
                **values,
            )
        )
    return answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How far the policy is from what it was, on sampled answers: one value an answer."""

    k1: list[float]
    """Summed ``log pi - log pi_0`` in nats."""
    rao_blackwell: list[float]
    """Summed KL of whole next-token distributions in nats, never negative."""
    untouched: list[float]
    """The same from the model that offline defences began with; empty without one."""
    served_gap: list[float]
    """Mean |log-probability by the engine - by the learner| a token: near 0 if weights agree."""


def measure_drift(tools: Instruments, completions: Sequence[Completion]) -> Drift:
    """Return the KL to the original and the engine's own gap on answers sampled at temperature 1.

    Raises:
        SamplingFailed: probabilities are not finite, the policy's or the engine's.
    """
    drift = Drift(k1=[], rao_blackwell=[], untouched=[], served_gap=[])
    width = max((len(c.prompt.token_ids) + len(c.token_ids) for c in completions), default=0)
    size = min(MAX_KL_ROWS, rows_at_once(width, tools.vocab_size))
    for start in range(0, len(completions), size):
        part = completions[start : start + size]
        tokens, served = collate_completions(part, tools.pad_token_id)
        with torch.no_grad():
            policy = tools.policy(tokens.input_ids, tokens.attention_mask).logits
            original = tools.original(tokens.input_ids, tokens.attention_mask).logits
            ids = tokens.input_ids.to(policy.device)
            mask = tokens.loss_mask.to(policy.device)
            policy_logprobs = next_token_logprobs(policy, ids)
            k1 = kl_k1(policy_logprobs, next_token_logprobs(original, ids))
            whole = kl_full(policy[:, :-1], original[:, :-1])
            if tools.untouched is not None:
                untouched = tools.untouched(tokens.input_ids, tokens.attention_mask).logits
                of_untouched = kl_full(policy[:, :-1], untouched[:, :-1])
                drift.untouched.extend((of_untouched * mask[:, 1:]).sum(dim=1).tolist())
        if not torch.isfinite(whole).all():
            raise SamplingFailed("the policy's probabilities on its own answers are not finite")
        gap = ((served.to(policy.device) - policy_logprobs).abs() * mask).sum(dim=1)
        if not torch.isfinite(gap).all():
            raise SamplingFailed("the engine's probabilities of its own answers are not finite")
        drift.k1.extend((k1 * mask).sum(dim=1).tolist())
        drift.rao_blackwell.extend((whole * mask[:, 1:]).sum(dim=1).tolist())
        drift.served_gap.extend((gap / mask.sum(dim=1)).tolist())
    return drift


def _with_drift(answers: Sequence[Answer], drift: Drift) -> list[Answer]:
    """Return the answers, the first sampled one of each prompt with its divergence."""
    untouched: Sequence[float | None] = drift.untouched or [None] * len(drift.k1)
    measured = zip(drift.rao_blackwell, untouched, drift.k1, drift.served_gap, strict=True)
    found = []
    for answer in answers:
        if answer.decoding is Decoding.SAMPLED and answer.sample == 0:
            kl, kl_untouched, k1, gap = next(measured)
            answer = replace(
                answer, kl=kl, kl_untouched=kl_untouched, kl_k1=k1, served_gap=_finite(gap)
            )
        found.append(answer)
    return found


def _harm_score(prompt: str, text: str, judged: float | None) -> int | None:
    return None if judged is None else harm_score(prompt, text, judged)


def _finite(value: float) -> float | None:
    return value if value == value else None


def _samples(answers: Sequence[Answer], decoding: Decoding, phase: str) -> list[dict[str, Any]]:
    return [
        {
            "phase": phase,
            "decoding": decoding.value,
            "prompt": answer.prompt,
            "answer": answer.text,
            "scores": {
                name: round(score, 4)
                for name in ("judge", "second_judge")
                if (score := getattr(answer, name)) is not None
            },
            "label": answer.label,
            "harm": None if answer.harm is None else round(answer.harm, 4),
            "policy_version": answer.policy_version,
        }
        for answer in answers
        if answer.decoding is decoding and answer.sample == 0
    ]
