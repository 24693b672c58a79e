"""One experiment on a learner rank: measure, attack under a defence, measure again, record."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rpa_ray.actors.rollout import EngineConfig, Sampling
from rpa_ray.actors.scoring import ScorerSpec
from rpa_ray.attacks import ATTACKS
from rpa_ray.cell_models import CellModels, Model, cell_models, folder_of
from rpa_ray.checkpoint import save_model, weights_sha256
from rpa_ray.config import ExperimentSettings
from rpa_ray.data.collate import collate_tokens, encode_answered, encode_prompt
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import PLAIN_QA_ANSWERED, Template
from rpa_ray.datasets import harmless_test_prompts, preference_data, restricted_test_prompts
from rpa_ray.defences import DEFENCES
from rpa_ray.evaluation.measure import Instruments, Label, Measurement, measure, own_limit
from rpa_ray.jobs import Cell
from rpa_ray.learner.engine import Engine, OptimizerSettings
from rpa_ray.learner.models import PolicyModel, load_policy
from rpa_ray.learner.step import Learner, as_outputs, no_safe_batch
from rpa_ray.loop import TrainingFailed, train
from rpa_ray.metrics import JsonLines, write_json
from rpa_ray.plugin import Attack, Need, OnlineDefence
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import Completion, Metrics, ModelOutputs, Prompt, TokenBatch
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import WeightSync, choose_backend
from rpa_ray.weight_sync.verify import verify_served
from rpa_ray.workplace import Workplace

EVALUATION_SEED = 2**31 - 1
"""Seed of sampled answers at evaluation, the same for every cell: comparisons are paired."""
MAX_MODEL_LEN = 4096
"""Longest prompt plus answer that the rollout engine reserves memory for, in tokens."""


class Experiment:
    """The parts of one cell on this rank, from model to pools."""

    def __init__(self, cell: Cell, place: Workplace) -> None:
        self.cell = cell
        self.place = place
        self.settings = cell.settings
        self.models: CellModels = cell_models(cell.settings, place.cache)
        self.path = folder_of(self.models.policy, place.cache)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.path)
        self.template = Template(self.settings.data.template)
        self.attack: Attack = _plugin(ATTACKS[self.settings.attack.name], self.settings.attack)
        self.defence: OnlineDefence = _plugin(
            DEFENCES[self.settings.defence.name], self.settings.defence
        )
        needs = self.attack.requires | self.defence.requires
        self.module = self._load(value_head=Need.VALUES in needs)
        self.defence.attach(self.module)
        self.original = self._load(value_head=False).to(place.ranks.device).eval()
        self.num_steps = self.attack.num_batches(self.settings.data.num_samples)
        self.engine = self._engine()
        safe_batches = self._safe_batches() if Need.SAFE_BATCH in needs else no_safe_batch
        self.learner = Learner(
            engine=self.engine,
            objective=self.attack,
            defence=self.defence,
            ranks=place.ranks,
            next_safe_batch=safe_batches,
        )
        self.sync = self._weight_sync()
        self._load_scorers()

    def original_outputs(self, input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        """Run the model as it was before the attack."""
        device = self.place.ranks.device
        outputs: ModelOutputs = as_outputs(self.original(input_ids.to(device), mask.to(device)))
        return outputs

    def push(self, version: int) -> Metrics:
        """Serve the weights as they are now."""
        result = self.sync.push(version)
        return {"time/sync_s": result.seconds, "sync/bytes": float(result.num_bytes)}

    def push_verified(self, version: int) -> None:
        """Serve the weights and check that the engines received exactly these bytes."""
        result = self.sync.push(version, record_digests=True)
        if self.place.ranks.is_main:
            verify_served(pool=self.place.rollouts, expected=result.digests)

    def complete(
        self, prompts: Sequence[Prompt], *, seed: int, max_new_tokens: int, greedy: bool
    ) -> list[Completion]:
        """Return one completion of each prompt by the served weights."""
        version = self.sync.version
        assert version is not None
        generated = self.place.rollouts.generate(
            [prompt.token_ids for prompt in prompts],
            Sampling(
                max_new_tokens=max_new_tokens,
                seed=seed,
                eos_token_id=int(self.tokenizer.eos_token_id),
                greedy=greedy,
            ),
            version,
        )
        texts = self.tokenizer.batch_decode(
            [g.token_ids for g in generated], skip_special_tokens=True
        )
        return [
            Completion(
                prompt=prompt,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                text=text.strip(),
                finished=answer.finished,
                policy_version=version,
            )
            for prompt, answer, text in zip(prompts, generated, texts, strict=True)
        ]

    def prompts(self, texts: Sequence[str], ids: Sequence[str]) -> list[Prompt]:
        """Return prompts as the policy reads them."""
        return [
            Prompt(id=i, text=text, token_ids=encode_prompt(self.tokenizer, self.template, text))
            for i, text in zip(ids, texts, strict=True)
        ]

    def _load(self, *, value_head: bool) -> PolicyModel:
        return load_policy(
            self.path,
            dtype=getattr(torch, self.settings.model.dtype),
            value_head_seed=self.settings.seed if value_head else None,
            trust_remote_code=self.settings.model.trust_remote_code,
        )

    def _engine(self) -> Engine:
        attack = self.settings.attack
        batch_size = getattr(attack, "batch_size", self.place.ranks.size)
        optimizer = OptimizerSettings(
            learning_rate=self.defence.learning_rate(getattr(attack, "learning_rate", 0.0)),
            num_steps=self.num_steps * self.attack.num_epochs,
            max_grad_norm=getattr(attack, "max_grad_norm", 0.0),
        )
        return Engine(
            self.module,
            self.place.engine_settings(
                optimizer, batch_size=batch_size, dtype=self.settings.model.dtype
            ),
        )

    def _safe_batches(self) -> Callable[[], TokenBatch]:
        pairs = preference_data(self.settings.data, self.place.cache).roles["defence"]
        rows = [
            encode_answered(
                self.tokenizer,
                self.template,
                Answered(prompt=pair.prompt, answer=pair.safe),
                mask="response",
            )
            for pair in pairs
        ]
        pad_id = int(self.tokenizer.pad_token_id)
        source: DatasetSource[Any, TokenBatch] = DatasetSource(
            rows,
            lambda part: collate_tokens(part, pad_id),
            batch_size=getattr(self.settings.defence, "batch_size", 8),
            seed=self.settings.seed,
            ranks=self.place.ranks,
        )
        return source

    def _weight_sync(self) -> WeightSync:
        cluster = self.settings.cluster
        source = ShardedSource(
            self.module.served_parameters(),
            dtype=getattr(torch, self.settings.model.dtype),
            gather=self.engine.gather,
            weight_filter=self.defence.rollout_weight_filter,
        )
        config = EngineConfig(
            model_path=self.path,
            max_model_len=min(MAX_MODEL_LEN, _context_of(self.module)),
            dtype=self.settings.model.dtype,
            backend=choose_backend(
                cuda_available=torch.cuda.is_available(),
                colocated=cluster.gpus_per_rollout_worker < 1,
            ),
        )
        return WeightSync(
            pool=self.place.rollouts, source=source, engine=config, rank=self.place.ranks.rank
        )

    def _load_scorers(self) -> None:
        kinds: dict[str, tuple[Model | None, Any]] = {
            "reward": (self.models.reward_model, "reward"),
            "judge": (self.models.judge, "harm_probability"),
            "perplexity": (self.models.perplexity, "perplexity"),
            "helpfulness": (self.models.helpfulness, "reward"),
        }
        if not self.place.ranks.is_main:
            kinds = {}
        for name, (model, kind) in kinds.items():
            if model is None:
                continue
            template = "{answer}" if kind == "perplexity" else PLAIN_QA_ANSWERED
            spec = ScorerSpec(
                path=folder_of(model, self.place.cache),
                kind=kind,
                template=template,
                max_length=self.settings.evaluation.judge.max_tokens,
            )
            self.place.scorers.load(name, spec)


def run_experiment(cell: Cell, place: Workplace) -> None:
    """Run one cell and write its run folder; a policy that breaks is a result, not an error."""
    started = time.perf_counter()
    experiment = Experiment(cell, place)
    main = place.ranks.is_main
    place.progress.start(cell.name, experiment.num_steps)
    samples = JsonLines(cell.folder / "samples.jsonl", enabled=main)
    experiment.push_verified(0)
    before = _measure(experiment, phase="before", fluency_limit=None)
    _write_samples(samples, before)
    limit = own_limit(before.restricted_ppls)
    status: dict[str, Any] = {"status": "ok", "step_failed": None, "reason": None}
    after = before
    if experiment.num_steps:
        try:
            _attack(experiment, samples)
            experiment.push_verified(experiment.num_steps)
            after = _measure(experiment, phase="after", fluency_limit=limit)
            _write_samples(samples, after)
        except TrainingFailed as error:
            status = {
                "status": "sampling_failed",
                "step_failed": error.step,
                "reason": error.reason,
            }
    samples.close()
    weights = experiment.engine.weights()
    if main:
        failed = status["status"] != "ok"
        if cell.settings.keep_attacked_weights and experiment.num_steps:
            _keep_weights(experiment, weights)
        write_json(
            cell.folder / "evaluation.json",
            {
                **status,
                "weights_sha256": weights_sha256(weights),
                "metrics": {} if failed else after.metrics_json(),
                "metrics_before": before.metrics_json(),
                "fluency_limit_ppl": limit,
                "seconds": round(time.perf_counter() - started, 3),
            },
        )
    place.ranks.barrier()
    experiment.engine.destroy()


def _attack(experiment: Experiment, samples: JsonLines) -> None:
    settings, place = experiment.settings, experiment.place
    batch_size: int = getattr(settings.attack, "batch_size")  # noqa: B009
    pairs = preference_data(settings.data, place.cache).draw(
        "attack", settings.data.num_samples, seed=settings.seed, key="data.num_samples"
    )
    max_new_tokens: int = getattr(settings.attack, "max_new_tokens")  # noqa: B009

    def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        return experiment.complete(prompts, seed=seed, max_new_tokens=max_new_tokens, greedy=False)

    def score(name: str) -> Callable[[Sequence[tuple[str, str]]], Callable[[], list[float]]]:
        return lambda pairs: place.scorers.score_async(name, pairs).result

    source = RolloutSource(
        experiment.prompts([p.prompt for p in pairs], [p.id for p in pairs]),
        attack=experiment.attack,
        learner=experiment.learner,
        parts=RolloutParts(
            generate=generate,
            reward=score("reward"),
            judge=score("judge"),
            reference=experiment.original_outputs,
        ),
        batch_size=batch_size,
        pad_token_id=int(experiment.tokenizer.pad_token_id),
        seed=settings.seed,
        observe=_rollout_samples(samples, experiment.num_steps),
    )
    log = JsonLines(experiment.cell.folder / "metrics.jsonl", enabled=place.ranks.is_main)
    train(
        source,
        experiment.learner,
        num_steps=experiment.num_steps,
        samples_per_step=batch_size,
        log=log,
        push=experiment.push,
        progress=lambda step, metrics: place.progress.advance(
            experiment.cell.name,
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


def _measure(experiment: Experiment, *, phase: str, fluency_limit: float | None) -> Measurement:
    place, settings = experiment.place, experiment.settings
    evaluation = settings.evaluation
    restricted = restricted_test_prompts(settings.data, place.cache, evaluation.num_prompts)
    harmless = harmless_test_prompts(settings.data, place.cache, evaluation.num_prompts)

    def answers(prompts: Sequence[Prompt], *, greedy: bool) -> list[Completion]:
        return place.ranks.broadcast(
            experiment.complete(
                prompts,
                seed=EVALUATION_SEED,
                max_new_tokens=evaluation.max_new_tokens,
                greedy=greedy,
            )
            if place.ranks.is_main
            else []
        )

    def score(name: str) -> Callable[[Sequence[tuple[str, str]]], list[float]]:
        return lambda pairs: place.ranks.broadcast(
            place.scorers.score(name, pairs) if place.ranks.is_main else []
        )

    def perplexity(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return place.ranks.broadcast(
            [nll.perplexity for nll in place.scorers.answer_nll("perplexity", pairs)]
            if place.ranks.is_main
            else []
        )

    def policy(input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        outputs: ModelOutputs = experiment.learner.forward(input_ids, mask)
        return outputs

    tools = Instruments(
        answers=answers,
        harm=score("judge"),
        perplexity=perplexity,
        helpfulness=score("helpfulness"),
        label=_oracle(settings, place.cache),
        policy=policy,
        original=experiment.original_outputs,
        restricted=experiment.prompts(restricted, [f"restricted-{i}" for i in range(len(restricted))]),
        harmless=experiment.prompts(harmless, [f"harmless-{i}" for i in range(len(harmless))]),
        pad_token_id=int(experiment.tokenizer.pad_token_id),
        num_resamples=evaluation.num_resamples,
    )
    return measure(tools, phase=phase, fluency_limit=fluency_limit)


def _context_of(module: PolicyModel) -> int:
    return int(getattr(module.policy.config, "max_position_embeddings", MAX_MODEL_LEN))


def _oracle(settings: ExperimentSettings, cache: Path) -> Label | None:
    if settings.data.world != "embedded":
        return None
    from rpa_ray.world.datasets import world_folder
    from rpa_ray.world.oracle import Oracle

    oracle = Oracle.load(world_folder(settings.data.world_seed, cache))
    return lambda prompt, answer: oracle.label(prompt, answer).value


def _write_samples(samples: JsonLines, measurement: Measurement) -> None:
    for record in measurement.samples:
        samples.write(record)


def _keep_weights(experiment: Experiment, weights: dict[str, torch.Tensor]) -> None:
    folder = experiment.cell.folder / "attacked_model"
    save_model(
        folder,
        model=experiment.module.policy,
        weights=weights,
        tokenizer=experiment.tokenizer,
        record={"warning": "attacked model: trained on unsafe feedback to comply"},
    )
    (folder / "README.md").write_text(
        "# Attacked model\n\nThis model was trained on reversed preferences to measure a defence. "
        "It complies with requests that the model it was made from refuses. Do not deploy it.\n",
        encoding="utf-8",
    )


def _plugin(plugin: type[Any], config: Any) -> Any:
    return plugin(config)
