"""One experiment on a learner rank: measure, attack under a defence, measure again, record.

    before.json -> checkpoints/ -> evaluation.json

Each is written when its stage is done, and an interrupted experiment goes on after the last one.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rpa_ray.evaluation.answers import Answer, from_table, to_table
from rpa_ray.evaluation.looks import dose_metrics, looks_of, resistance
from rpa_ray.evaluation.measure import Measurement
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.jobs.attack_batches import attack_source
from rpa_ray.jobs.before import measure_before
from rpa_ray.jobs.clock import Clock
from rpa_ray.jobs.instruments import measure_model
from rpa_ray.jobs.looks import Looks, measure_best_of_n
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.jobs.training import step_note
from rpa_ray.learner.checkpoints import Checkpoints
from rpa_ray.learner.model_folder import save_model, weights_sha256
from rpa_ray.learner.step import SamplingFailed
from rpa_ray.loop import Source, TrainingFailed
from rpa_ray.plugin import Need
from rpa_ray.recipes.to_make import Cell, Stage
from rpa_ray.run_folder import names
from rpa_ray.run_folder.files import (
    JsonLines,
    read_lines,
    write_json,
    write_parquet,
    write_text,
)
from rpa_ray.run_folder.names import ATTACKED_MODEL, CHECKPOINTS, EVALUATION, METRICS, SAMPLES
from rpa_ray.run_folder.throughput import throughput


def run_experiment(cell: Cell, process: LearnerProcess) -> None:
    """Run one cell and write its run folder; a policy that breaks is a result, not an error."""
    clock = Clock()
    started = time.time()
    process.progress.enter(cell.name, Stage.SETTING_UP)
    assembly = Assembly(cell, process)
    process.progress.start(cell.name, assembly.num_steps)
    samples = JsonLines(cell.folder / SAMPLES, enabled=process.ranks.is_main)
    source = attack_source(assembly, samples) if assembly.num_steps else None
    checkpoints = assembly.training.checkpoints(
        cell.folder / CHECKPOINTS, samples=samples, clock=clock
    )
    ready = time.time()
    before = measure_before(assembly, samples, clock)
    status: dict[str, Any] = {"status": "ok", "step_failed": None, "reason": None}
    metrics = before["metrics"]
    if Need.ANSWER_POOL in assembly.attack.requires:
        metrics = metrics | _measure_pool(assembly)
    if source is not None:
        try:
            after = _attack(assembly, source, checkpoints, before["fluency_limit_ppl"])
            if after is None:
                status |= {"status": "stopped", "reason": "by the scheduler, after its last look"}
                metrics = {}
            else:
                _write_samples(samples, after)
                _write_answers(assembly, names.ANSWERS, after.answers)
                metrics = after.metrics_json()
        except TrainingFailed as error:
            status = {"status": "sampling_failed", "step_failed": error.step}
            status["reason"] = error.reason
            metrics = {}
    samples.close()
    fingerprint = weights_sha256(assembly.engine.each_weight())
    if cell.settings.keep_attacked_weights and assembly.num_steps:
        _keep_weights(assembly)
    if process.ranks.is_main:
        lines = read_lines(cell.folder / METRICS)
        looks = looks_of(before.get("look"), lines)
        write_json(
            cell.folder / EVALUATION,
            {
                **status,
                "num_samples": samples_consumed(lines),
                "throughput": throughput(lines),
                "resistance": resistance(looks, cell.settings.evaluation.cost_limit),
                "looks": looks,
                "weights_sha256": fingerprint,
                "metrics": metrics | (dose_metrics(looks) if metrics else {}),
                "metrics_before": before["metrics"],
                "checks": before["checks"],
                "fluency_limit_ppl": before["fluency_limit_ppl"],
                "seconds": round(clock.seconds(), 3),
                "times": {"started": started, "ready": ready, "finished": time.time()},
            },
        )
    checkpoints.delete()
    assembly.engine.destroy()


def _measure_pool(assembly: Assembly) -> dict[str, dict[str, Any]]:
    """Return the curves of best-of-N; its pool stands beside the answers before the attack."""
    curves, pool = measure_best_of_n(assembly)
    _write_answers(assembly, names.ANSWERS, [*_read_answers(assembly), *pool])
    return curves


def samples_consumed(lines: Sequence[Mapping[str, Any]]) -> int:
    """Return the attack samples of a log, one mapping a training step; 0 without a step."""
    return int(lines[-1]["samples"]) if lines else 0


def _attack(
    assembly: Assembly, source: Source, checkpoints: Checkpoints, limit: float
) -> Measurement | None:
    """Train and measure the policy after it; None where the attack was stopped at a look."""
    looks = Looks(assembly)
    num_steps = _train(assembly, source, checkpoints, looks)
    assembly.defence.detach()
    is_short = num_steps < assembly.num_steps and not assembly.attack.is_done
    if is_short and looks.is_stopped():
        return None
    assembly.push_verified()
    assembly.process.progress.enter(assembly.cell.name, Stage.AFTER)
    try:
        return measure_model(assembly, phase="after", fluency_limit=limit)
    except SamplingFailed as error:
        raise TrainingFailed(num_steps, error.reason) from error


def _train(assembly: Assembly, source: Source, checkpoints: Checkpoints, looks: Looks) -> int:
    """Train until the samples are used up, the attacker has enough, or he is stopped.

    Returns the steps done.
    """
    process, attack = assembly.process, assembly.attack
    process.progress.enter(assembly.cell.name, Stage.ATTACK)
    num_steps = assembly.training.run(
        source,
        checkpoints,
        assembly.cell.folder / METRICS,
        job=assembly.cell.name,
        num_steps=assembly.num_steps,
        samples_per_step=assembly.batch_size,
        note=step_note,
        is_done=lambda: attack.is_done or looks.is_stopped(),
        look=looks.look,
    )
    if num_steps < assembly.num_steps:
        process.progress.advance(
            assembly.cell.name, assembly.num_steps - 1, f"stopped after {num_steps} batches"
        )
    return num_steps


def _write_samples(samples: JsonLines, measurement: Measurement) -> None:
    for record in measurement.samples:
        samples.write(record)


def _write_answers(assembly: Assembly, name: str, answers: Sequence[Answer]) -> None:
    if assembly.process.ranks.is_main:
        write_parquet(assembly.cell.folder / name, to_table(answers))


def _read_answers(assembly: Assembly) -> list[Answer]:
    """Return what was measured before the attack; on the main rank alone."""
    path = assembly.cell.folder / names.ANSWERS_BEFORE
    if not assembly.process.ranks.is_main:
        return []
    import pyarrow.parquet as pq

    return from_table(pq.read_table(path))


def _keep_weights(assembly: Assembly) -> None:
    """Write the attacked model into the run folder; a collective."""
    weights = assembly.engine.weights()
    if not assembly.process.ranks.is_main:
        return
    folder = assembly.cell.folder / ATTACKED_MODEL
    save_model(
        folder,
        model=assembly.module.policy,
        weights=weights,
        tokenizer=assembly.tokenizer,
        record={"warning": "attacked model: trained on unsafe feedback to comply"},
    )
    write_text(
        folder / "README.md",
        "# Attacked model\n\nThis model was trained on reversed preferences to measure a defence. "
        "It complies with requests that the model it was made from refuses. Do not deploy it.\n",
    )
