"""What a run folder tells beside its result: training curves, times, sample answers, settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rpa_ray.evaluation import looks
from rpa_ray.run_folder.files import AGAIN, parse_json, read_lines
from rpa_ray.run_folder.names import CONFIG, EVALUATION, MANIFEST, METRICS, SAMPLES

STAGES = ("rollout", "score", "experience", "learner", "sync")
"""Parts of a step that the loop times, in the order in which they happen."""

Curve = tuple[tuple[float, float], ...]
"""Points (attack samples consumed, value) in the order of the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One answer of the model that is measured."""

    phase: str
    """ "before" or "after" the attack, or "rollout" during it."""
    prompt: str
    answer: str
    scores: Mapping[str, float | None] | None = None
    label: str | None = None
    """The oracle's label; None where there is no oracle."""
    decoding: str = "greedy"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """The optional files of a run folder; what is not there is empty."""

    steps: tuple[Mapping[str, float], ...]
    """One mapping a step, ordered by step: metric name to value."""
    samples: tuple[Sample, ...]
    """Answers before and after the attack; rollouts are left out."""
    manifest: Mapping[str, object]
    config_text: str
    evaluation: Mapping[str, object]

    def curve(self, name: str) -> Curve:
        """Return a metric over the attack samples consumed."""
        return tuple(
            (row["samples"], row[name]) for row in self.steps if name in row and "samples" in row
        )

    def looks(self) -> tuple[Mapping[str, float], ...]:
        """Return what was seen of the policy on held-out prompts, with the `samples` consumed.

        The first look is before the attack. Of a run that did not end, or of one of old, those
        that the training log has.
        """
        recorded = self.evaluation.get("looks")
        if not isinstance(recorded, list):
            held_out = (looks.HARM, looks.JUDGED)
            return tuple(
                row for row in self.steps if "samples" in row and any(n in row for n in held_out)
            )
        numbers = (_finite(look) for look in recorded if isinstance(look, dict))
        return tuple(look for look in numbers if "samples" in look)

    @property
    def samples_consumed(self) -> int | None:
        """Attack samples the run had consumed at its last recorded step; None when not recorded."""
        counts = [row["samples"] for row in self.steps if "samples" in row]
        return int(counts[-1]) if counts else None

    def largest(self, name: str) -> float | None:
        """Return the largest value of a metric; None when it was never recorded."""
        return max((row[name] for row in self.steps if name in row), default=None)

    def seconds(self) -> dict[str, float]:
        """Return the time by stage in seconds, with "other" for all else that was timed.

        "other" is what the whole run took above the stages (evaluation, mostly); of a run that did
        not end, the remaining `time/*_s` metrics. Empty when nothing was timed.
        """
        timed: dict[str, float] = {}
        for row in self.steps:
            for name, value in row.items():
                if name.startswith("time/") and name.endswith("_s"):
                    stage = name.removeprefix("time/").removesuffix("_s")
                    timed[stage] = timed.get(stage, 0.0) + value
        stages = {stage: timed[stage] for stage in STAGES if stage in timed}
        total = self.total_seconds()
        if total is not None:
            other = max(0.0, total - sum(stages.values()))
        else:
            other = sum(value for stage, value in timed.items() if stage not in {*STAGES, "step"})
        return {**stages, "other": other} if stages or other else {}

    def total_seconds(self) -> float | None:
        """Return the wall time of the whole run in seconds; None for one that did not end."""
        total = self.evaluation.get("seconds")
        return float(total) if isinstance(total, int | float) else None


_SAMPLE = TypeAdapter(Sample)


def read_run(folder: Path) -> RunFiles:
    """Return what is in a run folder; a run that failed early may have none of the files.

    Raises:
        ValueError: when a file is there and is not what a run writes.
    """
    config_file = folder / CONFIG
    return RunFiles(
        steps=_read_steps(folder / METRICS),
        samples=_read_samples(folder / SAMPLES),
        manifest=_read_object(folder / MANIFEST),
        evaluation=_read_object(folder / EVALUATION),
        config_text=config_file.read_text("utf-8") if config_file.is_file() else "",
    )


def _read_object(path: Path) -> dict[str, object]:
    loaded = parse_json(path) if path.is_file() else {}
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} must hold a JSON object, got {loaded!r}. {AGAIN}")
    return loaded


def _read_steps(path: Path) -> tuple[Mapping[str, float], ...]:
    """Join the lines of a step; of a step repeated after a resume the later values are kept."""
    steps: dict[int, dict[str, float]] = {}
    for line in read_lines(path):
        values = _finite(line)
        if "step" in values:
            steps.setdefault(int(values["step"]), {}).update(values)
    return tuple(steps[step] for step in sorted(steps))


def _finite(line: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _read_samples(path: Path) -> tuple[Sample, ...]:
    samples = []
    for line in read_lines(path):
        if line.get("phase") not in {"before", "after"}:
            continue
        try:
            samples.append(_SAMPLE.validate_python(line))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(
                f"{path} must hold samples ({first['msg'].lower()} at {first['loc']}), "
                f"got {first['input']!r}. {AGAIN}"
            ) from error
    return tuple(samples)
