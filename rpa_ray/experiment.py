"""One experiment on a learner rank: measure, attack under a defence, measure again, record.

    before.json -> checkpoints/ -> evaluation.json

Each is written when its stage is done, and an interrupted experiment goes on after the last one.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
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
from rpa_ray.resume import CHECKPOINTS, Checkpoints, latest_checkpoint
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import Completion, Prompt
from rpa_ray.workplace import Workplace


class Clock:
    """How long an experiment took, the processes before this one up to their last save included."""

    def __init__(self) -> None:
        self._earlier_s = 0.0
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._earlier_s + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Count on from what an earlier process had counted."""
        self._earlier_s = state["seconds"]


def run_experiment(cell: Cell, place: Workplace) -> None:
    """Run one cell and write its run folder; a policy that breaks is a result, not an error."""
    clock = Clock()
    started = time.time()
    assembly = Assembly(cell, place)
    place.progress.start(cell.name, assembly.num_steps)
    samples = JsonLines(cell.folder / "samples.jsonl", enabled=place.ranks.is_main)
    checkpoints = Checkpoints(
        cell.folder / CHECKPOINTS,
        ranks=place.ranks,
        engine=assembly.engine,
        parts=assembly.state | {"samples": samples, "clock": clock},
        interval_s=place.cluster.checkpoint_interval_s,
    )
    ready = time.time()
    before = _measure_before(assembly, samples, clock)
    status: dict[str, Any] = {"status": "ok", "step_failed": None, "reason": None}
    metrics = before["metrics"]
    if assembly.num_steps:
        try:
            _attack(assembly, samples, checkpoints)
            assembly.push_verified()
            after = _measure_attacked(assembly, before["fluency_limit_ppl"])
            _write_samples(samples, after)
            metrics = after.metrics_json()
        except TrainingFailed as error:
            status = {
                "status": "sampling_failed",
                "step_failed": error.step,
                "reason": error.reason,
            }
            metrics = {}
    samples.close()
    weights = assembly.engine.weights()
    if place.ranks.is_main:
        if cell.settings.keep_attacked_weights and assembly.num_steps:
            _keep_weights(assembly, weights)
        write_json(
            cell.folder / "evaluation.json",
            {
                **status,
                "weights_sha256": weights_sha256(weights),
                "metrics": metrics,
                "metrics_before": before["metrics"],
                "checks": before["checks"],
                "fluency_limit_ppl": before["fluency_limit_ppl"],
                "seconds": round(clock.seconds(), 3),
                "times": {"started": started, "ready": ready, "finished": time.time()},
            },
        )
    checkpoints.delete()
    assembly.engine.destroy()


def _measure_before(assembly: Assembly, samples: JsonLines, clock: "Clock") -> dict[str, Any]:
    """Return what is known of the model before the attack, measured once a run folder."""
    path = assembly.cell.folder / "before.json"
    ranks = assembly.place.ranks
    known: dict[str, Any] | None = ranks.broadcast(_read_json(path) if ranks.is_main else None)
    if known is not None and assembly.num_steps:
        if latest_checkpoint(assembly.cell.folder / CHECKPOINTS) is None:
            samples.rewind(known["num_sample_lines"])
        clock.load_state_dict(known)
        return known
    samples.rewind(0)
    assembly.push_verified()
    measurement = measure_model(assembly, phase="before", fluency_limit=None)
    _write_samples(samples, measurement)
    before = {
        "metrics": measurement.metrics_json(),
        "checks": {name: asdict(check) for name, check in check_instruments(assembly).items()},
        "fluency_limit_ppl": own_limit(measurement.restricted_ppls),
        "num_sample_lines": samples.num_lines,
        **clock.state_dict(),
    }
    if ranks.is_main:
        write_json(path, before)
    return before


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _measure_attacked(assembly: Assembly, limit: float) -> Measurement:
    try:
        return measure_model(assembly, phase="after", fluency_limit=limit)
    except SamplingFailed as error:
        raise TrainingFailed(assembly.num_steps, error.reason) from error


def _attack(assembly: Assembly, samples: JsonLines, checkpoints: Checkpoints) -> None:
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

    source = RolloutSource(
        assembly.prompts([p.prompt for p in pairs], [p.id for p in pairs]),
        attack=assembly.attack,
        learner=assembly.learner,
        parts=RolloutParts(
            generate=generate,
            reward=partial(assembly.workers.score_async, "reward"),
            judge=partial(assembly.workers.score_async, "judge"),
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
        checkpoints=checkpoints,
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
