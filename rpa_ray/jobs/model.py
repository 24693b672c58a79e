"""Making a model from its recipe: rows -> source -> the training loop -> a Hugging Face folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rpa_ray.config import DataSettings, LoraSettings
from rpa_ray.data.collate import (
    TokenRow,
    collate_labelled,
    collate_pairs,
    collate_tokens,
    encode_answered,
    encode_scored,
)
from rpa_ray.data.hub_model import model_folder
from rpa_ray.data.rows import Answered, Labelled, Preference, SafePair
from rpa_ray.data.template import Template
from rpa_ray.data.told_apart import require_told_apart, sides
from rpa_ray.defences import offline_defence
from rpa_ray.jobs.defence_batches import DefenceData
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.jobs.sampled_hardening import SampledHardening, StartModel, grpo_of
from rpa_ray.jobs.training import Training, set_up, step_loss, step_note
from rpa_ray.learner.engine import Engine, OptimizerSettings
from rpa_ray.learner.model_folder import save_adapter, save_model
from rpa_ray.learner.modules import (
    PolicyModel,
    ScoreModel,
    add_lora,
    init_policy,
    load_policy,
    load_score_model,
)
from rpa_ray.learner.step import as_outputs
from rpa_ray.plugin import Need, Objective, OnlineDefence, SampledOfflineDefence
from rpa_ray.plugin.objectives import CostModel, Judge, LanguageModel, RewardModel
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import folder_of
from rpa_ray.recipes.model import ModelKind, ModelRecipe
from rpa_ray.recipes.rows import TrainingRows, encoder_of, pairs_to_tell_apart, training_rows
from rpa_ray.recipes.to_make import ModelJob
from rpa_ray.run_folder.files import read_lines
from rpa_ray.scoring.batching import padding_id
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.sources.pair_logprobs import PairLogprobs
from rpa_ray.types import Batch, LowRank

OBJECTIVES: dict[ModelKind, type[Objective[Any, Any]]] = {
    ModelKind.CAUSAL: LanguageModel,
    ModelKind.ADAPTER: LanguageModel,
    ModelKind.REWARD: RewardModel,
    ModelKind.COST: CostModel,
    ModelKind.JUDGE: Judge,
}


NO_HOOKS = OnlineDefence(OnlineDefence.Config())


def make_model(job: ModelJob, process: LearnerProcess) -> Path:
    """Train the model of a recipe and return its folder; every rank calls it."""
    recipe, settings = job.recipe, job.recipe.job
    folder = recipe.folder(process.cache)
    process.progress.start(job.name, settings.num_steps)
    tokenizer = AutoTokenizer.from_pretrained(
        model_folder(recipe.tokenizer), trust_remote_code=False
    )
    training = _training(job, tokenizer, process)
    hardening = _sampled_hardening(job, training, tokenizer, process)
    source = _source(job, tokenizer, process) if hardening is None else hardening.source()
    checkpoints = training.checkpoints(process.cache / "checkpoints" / folder.name)
    training.run(
        source,
        checkpoints,
        _log_of(recipe, process.cache),
        job=job.name,
        num_steps=settings.num_steps,
        samples_per_step=settings.batch_size,
        note=step_note,
    )
    _save(recipe, training.engine, tokenizer, process, num_rows=source.num_rows)
    checkpoints.delete()
    training.engine.destroy()
    return folder


def _training(
    job: ModelJob, tokenizer: PreTrainedTokenizerBase, process: LearnerProcess
) -> Training:
    """Return the training of a recipe: its objective, with the hooks of an offline defence."""
    recipe, settings = job.recipe, job.recipe.job
    module = _initial_module(recipe, tokenizer, process.cache)
    objective, hooks, needs = OBJECTIVES[recipe.kind](), NO_HOOKS, frozenset[Need]()
    lora: LoraSettings | None = None
    rows_per_step = settings.batch_size
    if recipe.defence is not None:
        offline = offline_defence(recipe.defence)
        hooks, needs = offline.hooks(), offline.needs
        if isinstance(offline, SampledOfflineDefence):
            objective = grpo_of(offline)
            rows_per_step *= objective.answers_per_prompt
        else:
            objective = offline.objective()
        lora = offline.lora
    if lora is not None:
        assert isinstance(module, PolicyModel)
        add_lora(module, lora, seed=recipe.seed, where="defence.lora")
    is_held = hooks.needs_copy(lora, process.cluster.zero_stage)
    hooks.attach(module, {})
    batches = DefenceData(
        tokenizer=tokenizer,
        data=CellData(job.data, process.cache),
        max_tokens=settings.max_tokens,
        cut_by="defence.max_tokens",
        batch_size=settings.batch_size,
        seed=recipe.seed,
        ranks=process.ranks,
    ).batches(needs)
    return set_up(
        module,
        process,
        objective=objective,
        defence=hooks,
        optimizer=OptimizerSettings(
            learning_rate=settings.learning_rate,
            num_steps=settings.num_steps,
            schedule=settings.schedule,
            warmup_frac=settings.warmup_frac,
            max_grad_norm=settings.max_grad_norm,
        ),
        rows_per_step=rows_per_step,
        dtype=settings.dtype,
        batches=batches,
        frozen=StartModel(recipe, process, hooks) if is_held else None,
    )


def _sampled_hardening(
    job: ModelJob,
    training: Training,
    tokenizer: PreTrainedTokenizerBase,
    process: LearnerProcess,
) -> SampledHardening | None:
    """Return what has the model of a recipe answer prompts; None where it learns from rows."""
    if job.recipe.defence is None:
        return None
    offline = offline_defence(job.recipe.defence)
    if not isinstance(offline, SampledOfflineDefence):
        return None
    return SampledHardening(job, offline, training, tokenizer, process)


def _source(
    job: ModelJob, tokenizer: PreTrainedTokenizerBase, process: LearnerProcess
) -> DatasetSource[Any, Any]:
    recipe, settings = job.recipe, job.recipe.job
    data = CellData(job.data, process.cache)
    data_rows = training_rows(
        recipe.rows, data, margins=partial(_margins, recipe, job.data, process)
    )
    # What a chat model refuses with is told to it as the run asks it; all else is plain text.
    template = Template(str(recipe.rows.settings.get("template", Template.PLAIN_QA)))
    _require_told_apart(recipe, data, tokenizer)
    rows, collate = encode_rows(data_rows, tokenizer, settings.max_tokens, template)
    return DatasetSource(
        rows, collate, batch_size=settings.batch_size, seed=recipe.seed, ranks=process.ranks
    )


def _require_told_apart(
    recipe: ModelRecipe, data: CellData, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse pairs whose two answers are one row to the model that is made."""
    found = pairs_to_tell_apart(recipe.rows, data)
    if found is None:
        return
    key, pairs = found
    num, encode = recipe.job.max_tokens, encoder_of(recipe.rows, tokenizer)
    read = ((encode(safe)[:num], encode(unsafe)[:num]) for safe, unsafe in map(sides, pairs))
    where = data.of_key(recipe.rows.data_key).where
    require_told_apart(pairs, read, encode, where=where, max_tokens=num, key=key)


def encode_rows(
    rows: TrainingRows,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    template: Template = Template.PLAIN_QA,
) -> tuple[list[Any], Callable[[Sequence[Any]], Batch]]:
    """Return token rows and how to make a batch of them, by the kind of the first row."""
    pad_id = padding_id(tokenizer)
    match rows[0]:
        case str():
            eos = tokenizer.eos_token_id
            ids = [[*tokenizer(text)["input_ids"], eos][:max_tokens] for text in rows]
            encoded: list[Any] = [TokenRow(ids=i, loss_mask=[True] * len(i)) for i in ids]
            for row in encoded:
                row.loss_mask[0] = False  # nothing predicts the first token
            return encoded, lambda part: collate_tokens(part, pad_id)
        case Answered():
            encoded = [
                encode_answered(tokenizer, template, row, mask="response", max_tokens=max_tokens)
                for row in rows
                if isinstance(row, Answered)
            ]
            return encoded, lambda part: collate_tokens(part, pad_id)
        case Preference():
            encoded = [
                tuple(
                    encode_scored(tokenizer, row.prompt, answer, max_tokens=max_tokens)
                    for answer in (row.chosen, row.rejected)
                )
                for row in rows
                if isinstance(row, Preference)
            ]
            return encoded, lambda part: collate_pairs(
                [pair[0] for pair in part], [pair[1] for pair in part], pad_id
            )
        case _:
            encoded = [
                (encode_scored(tokenizer, row.prompt, row.answer, max_tokens=max_tokens), row.label)
                for row in rows
                if isinstance(row, Labelled)
            ]
            return encoded, lambda part: collate_labelled(
                [row for row, _ in part], [label for _, label in part], pad_id
            )


def _save(
    recipe: ModelRecipe,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    process: LearnerProcess,
    *,
    num_rows: int,
) -> None:
    """Write what was trained, and how well, into the recipe's folder; a collective."""
    folder, settings = recipe.folder(process.cache), recipe.job
    is_adapter = recipe.kind is ModelKind.ADAPTER
    halves = _adapter_weights(engine) if is_adapter else {}
    weights = {} if is_adapter else engine.weights()
    if not process.ranks.is_main:
        return
    losses = _losses(_log_of(recipe, process.cache))
    record = {
        "recipe": asdict(recipe),
        "key": recipe.key(),
        "num_rows": num_rows,
        "threads": torch.get_num_threads(),
        "first_loss": losses[0],
        "last_loss": fmean(losses[-max(1, len(losses) // 10) :]),
    }
    if is_adapter:
        assert recipe.start is not None
        base_model = folder_of(recipe.start, process.cache)
        save_adapter(
            folder, weights=halves, base_model=base_model, record=record, **recipe.architecture
        )
    else:
        if settings.rounded:
            weights = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
        model = engine.module.policy
        save_model(folder, model=model, weights=weights, tokenizer=tokenizer, record=record)


def _adapter_weights(engine: Engine) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return whole CPU copies of both halves of every adapter, by layer (collective)."""
    found = {}
    adapters: dict[str, LowRank] = engine.module.adapters()  # type: ignore[operator]
    for name, adapter in adapters.items():
        halves = (adapter.down, adapter.up)
        with engine.gather(halves), torch.no_grad():
            down, up = (half.detach().to("cpu", copy=True) for half in halves)
        found[name.removesuffix(".weight")] = (down, up)
    return found


def _log_of(recipe: ModelRecipe, cache: Path) -> Path:
    return cache / "logs" / f"{recipe.folder(cache).name}.jsonl"


def _losses(log: Path) -> list[float]:
    """Return the loss of every step of a training, the last tenth of which tells how it ended."""
    return [step_loss(line) for line in read_lines(log)]


def _margins(
    recipe: ModelRecipe, data: DataSettings, process: LearnerProcess, pairs: Sequence[SafePair]
) -> list[float] | None:
    """Return how much the model that chooses the flips prefers each safe answer."""
    if recipe.ranked_by is None:
        return None
    folder = folder_of(recipe.ranked_by, process.cache)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = load_policy(folder, dtype=getattr(torch, recipe.job.dtype)).to(process.ranks.device)

    def encode(prompt: str, answer: str) -> TokenRow:
        row = Answered(prompt=prompt, answer=answer)
        return encode_answered(tokenizer, Template(data.template), row, mask="response")

    return PairLogprobs(
        [encode(pair.prompt, pair.safe) for pair in pairs],
        [encode(pair.prompt, pair.unsafe) for pair in pairs],
        model=lambda ids, mask: as_outputs(
            model(ids.to(process.ranks.device), mask.to(process.ranks.device))
        ),
        ranks=process.ranks,
        pad_token_id=padding_id(tokenizer),
        vocab_size=model.vocab_size,
    ).margins()


def _initial_module(
    recipe: ModelRecipe, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> PolicyModel | ScoreModel:
    dtype = getattr(torch, recipe.job.dtype)
    if recipe.start is None:
        config = AutoConfig.for_model(
            **{"model_type": recipe.model_type} | recipe.architecture,
            vocab_size=len(tokenizer),
            num_key_value_heads=recipe.architecture["num_attention_heads"],
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return init_policy(config, seed=recipe.seed, dtype=dtype)
    start = folder_of(recipe.start, cache)
    if recipe.kind in (ModelKind.CAUSAL, ModelKind.ADAPTER):
        model = load_policy(start, dtype=dtype)
        if recipe.kind is ModelKind.ADAPTER:
            sizes = recipe.architecture
            settings = LoraSettings(rank=sizes["rank"], alpha=sizes["alpha"])
            add_lora(model, settings, seed=recipe.seed)
        return model
    return load_score_model(
        start,
        num_labels=2 if recipe.kind is ModelKind.JUDGE else 1,
        pad_token_id=padding_id(tokenizer),
        seed=recipe.seed,
        dtype=dtype,
    )
