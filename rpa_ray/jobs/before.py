"""What is measured of a model before the attack: once for all cells of a campaign that start alike.

Evaluations sample with one seed for all cells, so that of the same weights, prompts and instruments
each would find the same. What one has found lies in the campaign's folder for the others.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rpa_ray.evaluation.answers import Answer, Decoding, to_table
from rpa_ray.evaluation.looks import look_of
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.jobs.clock import Clock
from rpa_ray.jobs.instruments import check_instruments, fluency_limit, measure_model
from rpa_ray.jobs.scorers import scorer_specs
from rpa_ray.learner.checkpoints import latest_checkpoint
from rpa_ray.recipes.cell_models import adapter_config, folder_of
from rpa_ray.recipes.content import content_key
from rpa_ray.recipes.to_make import Stage
from rpa_ray.run_folder.files import (
    JsonLines,
    read_json,
    whole_file,
    write_json,
    write_parquet,
)
from rpa_ray.run_folder.names import ANSWERS_BEFORE, BEFORE, CHECKPOINTS, SHARED_BEFORE


def measure_before(assembly: Assembly, samples: JsonLines, clock: Clock) -> dict[str, Any]:
    """Return what is known of the model before the attack, and have it in the run folder.

    A run that is resumed finds it there. Otherwise it is what another cell of the campaign has
    found that starts alike, or else it is measured. A collective over the ranks.
    """
    cell, ranks = assembly.cell, assembly.process.ranks
    assembly.process.progress.enter(cell.name, Stage.BEFORE)
    own = cell.folder / BEFORE
    known: dict[str, Any] | None = ranks.broadcast(read_json(own, dict) if ranks.is_main else None)
    if known is not None and assembly.num_steps:
        if ranks.is_main and latest_checkpoint(cell.folder / CHECKPOINTS) is None:
            samples.rewind(known["num_sample_lines"])
        clock.load_state_dict(known)
        return known
    samples.rewind(0)
    shared = cell.folder.parent / SHARED_BEFORE / _key(assembly, assembly.push_verified())
    found: dict[str, Any] | None = ranks.broadcast(
        read_json(shared / BEFORE, dict) if ranks.is_main else None
    )
    if found is None:
        found = _measure(assembly, shared)
    for record in found["samples"]:
        samples.write(record)
    before = {name: value for name, value in found.items() if name != "samples"}
    before |= {"num_sample_lines": samples.num_lines, **clock.state_dict()}
    if ranks.is_main:
        with whole_file(cell.folder / ANSWERS_BEFORE) as file:
            file.write((shared / ANSWERS_BEFORE).read_bytes())
        write_json(own, before)
    return before


def _measure(assembly: Assembly, shared: Path) -> dict[str, Any]:
    """Return metrics, checks, look and samples of the served model, and keep them for others."""
    limit = fluency_limit(assembly)
    measurement = measure_model(assembly, phase="before", fluency_limit=limit)
    found = {
        "metrics": measurement.metrics_json(),
        "checks": {name: asdict(check) for name, check in check_instruments(assembly).items()},
        "fluency_limit_ppl": limit,
        "look": look_before(assembly, measurement.answers),
        "samples": measurement.samples,
    }
    if assembly.process.ranks.is_main:
        # The answers first: who finds the other file finds both.
        write_parquet(shared / ANSWERS_BEFORE, to_table(measurement.answers))
        write_json(shared / BEFORE, found)
    return found


def look_before(assembly: Assembly, answers: Sequence[Answer]) -> dict[str, float]:
    """Return the look at the model before the attack, out of what was measured of it.

    Its answers are those that a look would sample: to the same prompts, with the same seeds.
    """
    evaluation = assembly.settings.evaluation
    seen = [
        answer
        for answer in answers
        if answer.decoding is Decoding.SAMPLED
        and answer.sample == 0
        and answer.prompt_index < evaluation.num_look_prompts
    ]
    return look_of(seen, cost_limit=evaluation.cost_limit, num_resamples=evaluation.num_resamples)


def _key(assembly: Assembly, served: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits for all that a measurement before the attack depends on.

    Of attack and defence that is what they need of models: nothing of them acts yet. ``served`` is
    the digests of the weights by name, on the main rank.
    """
    settings, cache = assembly.settings, assembly.process.cache
    models = scorer_specs(assembly.models, settings, cache)
    vector, untouched = assembly.models.security_vector, assembly.models.untouched
    whole = settings.to_yaml_dict()
    for part in ("attack", "defence", "keep_attacked_weights"):
        del whole[part]
    parts: dict[str, Any] = {
        "settings": whole,
        "weights": dict(served),
        "tokenizer": content_key(assembly.path),
        "scorers": {
            name: [content_key(spec.path), asdict(spec)] for name, spec in sorted(models.items())
        },
        "untouched": untouched and content_key(folder_of(untouched, cache)),
        "vector": vector and [folder_of(vector, cache), adapter_config(settings.defence).scale],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
