"""One training on a learner rank: engine, step, batches of the defence, checkpoints, loop.

Models that are made and policies under attack are trained by the same lines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.learner.checkpoints import Checkpoints, Stateful
from rpa_ray.learner.engine import Engine, OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, ScoreModel, checkpoint_layers
from rpa_ray.learner.step import Learner, run_without_adapters
from rpa_ray.loop import Source, train
from rpa_ray.plugin import Forward, Need, Objective, OnlineDefence
from rpa_ray.plugin.step import NO_CONTRAST_BATCH, NO_FORWARD, NO_HARMLESS_BATCH, NO_SAFE_BATCH
from rpa_ray.run_folder.files import JsonLines
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.types import Metrics, ModelOutputs

BATCHES_IN_CHECKPOINTS = {
    Need.SAFE_BATCH: "safe_batches",
    Need.CONTRAST_BATCH: "contrast_batches",
    Need.HARMLESS_BATCH: "harmless_batches",
}
"""Parts of a checkpoint that say how far the batches of the defence's side are drawn."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model under DeepSpeed with the step that trains it."""

    process: LearnerProcess
    engine: Engine
    learner: Learner
    state: dict[str, Stateful] = field(default_factory=dict)
    """The parts whose state a checkpoint keeps, by name; sources add theirs."""

    def checkpoints(self, folder: Path, **parts: Stateful) -> Checkpoints:
        """Return what saves the training, and further parts by name, in a folder."""
        return Checkpoints(
            folder,
            ranks=self.process.ranks,
            engine=self.engine,
            parts=self.state | parts,
            interval_s=self.process.cluster.checkpoint_interval_s,
        )

    def run(
        self,
        source: Source,
        checkpoints: Checkpoints,
        log: Path,
        *,
        job: str,
        num_steps: int,
        samples_per_step: int,
        note: Callable[[Metrics], str],
        **watched: Any,
    ) -> int:
        """Train from the last checkpoint on, one line a step in ``log``; return the steps done.

        Args:
            source: Makes the batches.
            checkpoints: What :meth:`checkpoints` returned.
            log: JSON lines, written by the main rank.
            job: Under which name progress is told.
            num_steps: Batches, at most.
            samples_per_step: Prompts, pairs or rows of one batch, over all ranks.
            note: What is told of a step, from its metrics.
            watched: ``is_done`` and ``look`` of :func:`rpa_ray.loop.train`.

        Raises:
            TrainingFailed: sampling or loss became non-finite.
        """
        lines = JsonLines(log, enabled=self.process.ranks.is_main)
        done = train(
            source,
            self.learner,
            num_steps=num_steps,
            samples_per_step=samples_per_step,
            log=lines,
            checkpoints=checkpoints,
            progress=lambda step, metrics: self.process.progress.advance(job, step, note(metrics)),
            **watched,
        )
        lines.close()
        return done


def step_note(metrics: Mapping[str, float]) -> str:
    """Return what progress tells of a step."""
    if "reward/mean" in metrics:
        return f"reward {metrics['reward/mean']:+.2f}  harm {metrics['judge/p_harm']:.2f}"
    return f"loss {metrics['train/loss']:.3f}"


def step_loss(metrics: Mapping[str, float]) -> float:
    """Return the loss of a step, of rollouts that of the policy."""
    return metrics["policy/loss" if "policy/loss" in metrics else "train/loss"]


def set_up(
    module: PolicyModel | ScoreModel,
    process: LearnerProcess,
    *,
    objective: Objective[Any, Any],
    defence: OnlineDefence,
    optimizer: OptimizerSettings,
    rows_per_step: int,
    dtype: str,
    batches: Mapping[Need, DatasetSource[Any, Any]],
    frozen: Forward[ModelOutputs] | None = NO_FORWARD,
) -> Training:
    """Return a training of a module to which the defence has attached what it wants.

    Args:
        module: Model that learns, on the CPU; the engine takes it.
        process: This rank and its settings.
        objective: What is trained on; an attack, or what makes a model.
        defence: Hooks around each step.
        optimizer: Rate and its course.
        rows_per_step: Rows of one update, over all ranks: answers, where several go with a prompt.
        dtype: Type of the weights.
        batches: What the defence draws from, by need.
        frozen: The model that the defence compares with; None is that of the module's adapters.
    """
    if process.cluster.gradient_checkpointing:
        checkpoint_layers(module)
    engine = Engine(
        module, process.engine_settings(optimizer, batch_size=rows_per_step, dtype=dtype)
    )
    learner = Learner(
        engine=engine,
        objective=objective,
        defence=defence,
        ranks=process.ranks,
        next_safe_batch=batches.get(Need.SAFE_BATCH, NO_SAFE_BATCH),
        next_contrast_batch=batches.get(Need.CONTRAST_BATCH, NO_CONTRAST_BATCH),
        next_harmless_batch=batches.get(Need.HARMLESS_BATCH, NO_HARMLESS_BATCH),
        frozen=partial(run_without_adapters, engine) if frozen is None else frozen,
    )
    state: dict[str, Stateful] = {"learner": learner}
    state |= {BATCHES_IN_CHECKPOINTS[need]: source for need, source in batches.items()}
    return Training(process=process, engine=engine, learner=learner, state=state)
