"""One experiment on a learner rank: measure, attack under a defence, measure again, record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from rpa_ray.assembly import Assembly
from rpa_ray.checkpoint import save_model, weights_sha256
from rpa_ray.datasets import preference_data
from rpa_ray.evaluation.measure import Measurement, own_limit
from rpa_ray.jobs import Cell
from rpa_ray.learner.step import SamplingFailed
from rpa_ray.loop import TrainingFailed, train
from rpa_ray.measuring import check_instruments, measure_model
from rpa_ray.metrics import JsonLines, write_json
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import Completion, Prompt
from rpa_ray.workplace import Workplace


def run_experiment(cell: Cell, place: Workplace) -> None:
    """Run one cell and write its run folder; a policy that breaks is a result, not an error."""
    started = time.perf_counter()
    assembly = Assembly(cell, place)
    main = place.ranks.is_main
    place.progress.start(cell.name, assembly.num_steps)
    samples = JsonLines(cell.folder / "samples.jsonl", enabled=main)
    assembly.push_verified(0)
    before = measure_model(assembly, phase="before", fluency_limit=None)
    _write_samples(samples, before)
    limit = own_limit(before.restricted_ppls)
    checks = check_instruments(assembly) if main else {}
    status: dict[str, Any] = {"status": "ok", "step_failed": None, "reason": None}
    after = before
    if assembly.num_steps:
        try:
            _attack(assembly, samples)
            assembly.push_verified(assembly.num_steps)
            after = _measure_attacked(assembly, limit)
            _write_samples(samples, after)
        except TrainingFailed as error:
            status = {
                "status": "sampling_failed",
                "step_failed": error.step,
                "reason": error.reason,
            }
    samples.close()
    weights = assembly.engine.weights()
    if main:
        failed = status["status"] != "ok"
        if cell.settings.keep_attacked_weights and assembly.num_steps:
            _keep_weights(assembly, weights)
        write_json(
            cell.folder / "evaluation.json",
            {
                **status,
                "weights_sha256": weights_sha256(weights),
                "metrics": {} if failed else after.metrics_json(),
                "metrics_before": before.metrics_json(),
                "checks": {name: asdict(check) for name, check in checks.items()},
                "fluency_limit_ppl": limit,
                "seconds": round(time.perf_counter() - started, 3),
            },
        )
    place.ranks.barrier()
    assembly.engine.destroy()


def _measure_attacked(assembly: Assembly, limit: float) -> Measurement:
    try:
        return measure_model(assembly, phase="after", fluency_limit=limit)
    except SamplingFailed as error:
        raise TrainingFailed(assembly.num_steps, error.reason) from error


def _attack(assembly: Assembly, samples: JsonLines) -> None:
    settings, place = assembly.settings, assembly.place
    batch_size: int = getattr(settings.attack, "batch_size")  # noqa: B009
    pairs = preference_data(settings.data, place.cache).draw(
        "attack", settings.data.num_samples, seed=settings.seed, key="data.num_samples"
    )
    max_new_tokens: int = getattr(settings.attack, "max_new_tokens")  # noqa: B009

    def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        return assembly.complete(
            prompts,
            seed=seed,
            max_new_tokens=max_new_tokens,
            greedy=False,
            first_index=place.ranks.rank * len(prompts),
        )

    def score(name: str) -> Callable[[Sequence[tuple[str, str]]], Callable[[], list[float]]]:
        return lambda pairs: place.scorers.score_async(name, pairs).result

    source = RolloutSource(
        assembly.prompts([p.prompt for p in pairs], [p.id for p in pairs]),
        attack=assembly.attack,
        learner=assembly.learner,
        parts=RolloutParts(
            generate=generate,
            reward=score("reward"),
            judge=score("judge"),
            reference=assembly.original_outputs,
        ),
        batch_size=batch_size,
        pad_token_id=int(assembly.tokenizer.pad_token_id),
        seed=settings.seed,
        observe=_rollout_samples(samples, assembly.num_steps),
    )
    log = JsonLines(assembly.cell.folder / "metrics.jsonl", enabled=place.ranks.is_main)
    train(
        source,
        assembly.learner,
        num_steps=assembly.num_steps,
        samples_per_step=batch_size,
        log=log,
        push=assembly.push,
        progress=lambda step, metrics: place.progress.advance(
            assembly.cell.name,
            step,
            f"reward {metrics['reward/mean']:+.2f}  harm {metrics['judge/p_harm']:.2f}",
        ),
    )
    log.close()


def _rollout_samples(
    samples: JsonLines, num_steps: int
) -> Callable[[int, Sequence[Completion], dict[str, list[float]]], None]:
    every = max(1, num_steps // 20)

    def observe(
        step: int, completions: Sequence[Completion], scores: dict[str, list[float]]
    ) -> None:
        if step % every:
            return
        first = completions[0]
        samples.write(
            {
                "phase": "rollout",
                "step": step,
                "decoding": "sampled",
                "prompt": first.prompt.text,
                "answer": first.text,
                "scores": {name: round(values[0], 4) for name, values in scores.items()},
                "label": None,
                "policy_version": first.policy_version,
            }
        )

    return observe


def _write_samples(samples: JsonLines, measurement: Measurement) -> None:
    for record in measurement.samples:
        samples.write(record)


def _keep_weights(assembly: Assembly, weights: dict[str, torch.Tensor]) -> None:
    folder = assembly.cell.folder / "attacked_model"
    save_model(
        folder,
        model=assembly.module.policy,
        weights=weights,
        tokenizer=assembly.tokenizer,
        record={"warning": "attacked model: trained on unsafe feedback to comply"},
    )
    (folder / "README.md").write_text(
        "# Attacked model\n\nThis model was trained on reversed preferences to measure a defence. "
        "It complies with requests that the model it was made from refuses. Do not deploy it.\n",
        encoding="utf-8",
    )
