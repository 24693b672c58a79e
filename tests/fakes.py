"""Small stand-ins that many tests share: a tiny policy, batches, one rank, scripted workers."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rpa_ray.learner.engine import Engine, EngineSettings, OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, ScoreModel
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner, as_outputs
from rpa_ray.plugin import Attack, Need, Objective, OnlineDefence, StepContext
from rpa_ray.plugin.step import NO_FORWARD
from rpa_ray.types import (
    Completion,
    Experience,
    LossTerm,
    Metrics,
    ModelOutputs,
    PairBatch,
    Prompt,
    ReferencedPairBatch,
    ScoredRollout,
    TokenBatch,
)

VOCAB_SIZE = 24
ONE_RANK = Ranks(rank=0, size=1, device=torch.device("cpu"))


def tiny_config(*, num_hidden_layers: int = 2, **settings: Any) -> LlamaConfig:
    """Return layers of width 32, with weights large enough that the logits are not flat."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
        **settings,
    )


def tiny_llama(*, seed: int = 0, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=tied))


def tiny_classifier(*, num_labels: int, seed: int = 0) -> ScoreModel:
    torch.manual_seed(seed)
    return ScoreModel(LlamaForSequenceClassification(tiny_config(num_labels=num_labels)))


def tiny_policy(*, bf16: bool = False, seed: int = 0, value_head: bool = True) -> PolicyModel:
    model = tiny_llama(seed=seed)
    if bf16:
        model = model.to(torch.bfloat16)
    return PolicyModel(model, value_head_seed=3 if value_head else None)


def tiny_engine(
    *,
    zero_stage: int = 0,
    bf16: bool = False,
    seed: int = 0,
    num_ranks: int = 1,
    micro_batch_size: int = 64,
    optimizer: OptimizerSettings | None = None,
    module: nn.Module | None = None,
    **settings: Any,
) -> Engine:
    """Return a tiny policy with value head under DeepSpeed; stage 0 in fp32 by default."""
    return Engine(
        module or tiny_policy(bf16=bf16, seed=seed),
        EngineSettings(
            optimizer=optimizer or OptimizerSettings(learning_rate=1e-2, num_steps=10),
            micro_batch_size=micro_batch_size,
            num_ranks=num_ranks,
            zero_stage=zero_stage,
            bf16=bf16,
            **settings,
        ),
    )


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """Return on every rank what the first one is given; a collective."""
    return Ranks.current().broadcast(engine.weights())


def token_batch(
    rows: Sequence[Sequence[int]], *, num_prompt_tokens: int = 1, width: int | None = None
) -> TokenBatch:
    """Return right-padded rows whose loss counts after the prompt."""
    width = width or max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = True
    loss_mask = attention_mask.clone()
    loss_mask[:, :num_prompt_tokens] = False
    return TokenBatch(input_ids=input_ids, attention_mask=attention_mask, loss_mask=loss_mask)


def experience_of(tokens: TokenBatch, *, seed: int = 0) -> Experience:
    """Return random but plausible rollout quantities for the tokens."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(tokens.input_ids.shape, generator=generator)

    return Experience(
        tokens=tokens,
        old_logprobs=-3.0 + 0.1 * noise(),
        old_values=0.1 * noise(),
        advantages=noise(),
        returns=noise(),
        reference_logprobs=-3.0 + 0.1 * noise(),
        num_tokens=max(1, int(tokens.loss_mask.sum())),
    )


def rollout_of(
    tokens: TokenBatch,
    *,
    rewards: Sequence[float],
    log_ratios: Tensor | None = None,
    engine_log_ratios: Tensor | None = None,
    values: Tensor | None = None,
    entropies: Tensor | None = None,
) -> ScoredRollout:
    """Return a rollout; ``log_ratios`` is log pi_old - log pi_ref, or that of the engine."""
    old = torch.full(tokens.input_ids.shape, -2.0)
    zeros = torch.zeros_like(old)
    return ScoredRollout(
        tokens=tokens,
        old_logprobs=old,
        rollout_logprobs=old - (zeros if engine_log_ratios is None else engine_log_ratios),
        reference_logprobs=old - (zeros if log_ratios is None else log_ratios),
        values=zeros if values is None else values,
        rewards=torch.tensor(rewards),
        costs=None,
        entropies=entropies,
    )


def keep(advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
    """Leave the advantages as they are, as a defence without a say does."""
    assert cost_advantages is None
    return advantages


def referenced_pairs(chosen: TokenBatch, rejected: TokenBatch) -> ReferencedPairBatch:
    """Return pairs whose reference gives the answers -0, -1, ... and -10, -11, ... nats."""
    rows = torch.arange(float(len(chosen.input_ids)))
    return ReferencedPairBatch(
        chosen=chosen,
        rejected=rejected,
        reference_chosen_logprobs=-rows,
        reference_rejected_logprobs=-10.0 - rows,
    )


def context_of(
    *,
    num_ranks: int = 1,
    update: int = 0,
    num_terms: int = 0,
    safe_batch: TokenBatch | None = None,
    frozen: Any = NO_FORWARD,
    contrast_batch: PairBatch | None = None,
    harmless_batch: TokenBatch | None = None,
) -> StepContext:
    """Return a step's context as if every rank held what this one holds."""

    def next_safe_batch() -> TokenBatch:
        assert safe_batch is not None
        return safe_batch

    def next_contrast_batch() -> PairBatch:
        assert contrast_batch is not None
        return contrast_batch

    def next_harmless_batch() -> TokenBatch:
        assert harmless_batch is not None
        return harmless_batch

    def gather_rows(own: Tensor) -> Tensor:
        others = own.detach().repeat(num_ranks - 1, *[1] * (own.dim() - 1))
        return torch.cat([own, others])

    return StepContext(
        update=update,
        num_ranks=num_ranks,
        sum_over_ranks=lambda tensor: tensor * num_ranks,
        sum_over_shards=lambda tensor: tensor * num_ranks,
        next_safe_batch=next_safe_batch,
        next_contrast_batch=next_contrast_batch,
        next_harmless_batch=next_harmless_batch,
        gather_rows=gather_rows,
        num_terms=num_terms,
        frozen=frozen,
    )


def loss_of(
    objective: Objective[Any, Any], forward: Any, batch: Any, *, num_ranks: int = 1
) -> LossTerm:
    """Return the loss of a step of one micro-batch, where every rank holds the same rows."""
    num_terms = num_ranks * int(objective.num_terms(batch))
    return objective.loss(forward, batch, context_of(num_ranks=num_ranks, num_terms=num_terms))


def learner_of(
    engine: Engine,
    objective: Objective[Any, Any],
    defence: OnlineDefence | None = None,
    *,
    ranks: Ranks = ONE_RANK,
    safe_batch: TokenBatch | None = None,
    frozen: Any = NO_FORWARD,
    contrast_batch: PairBatch | None = None,
    harmless_batch: TokenBatch | None = None,
) -> Learner:
    context = context_of(
        safe_batch=safe_batch, contrast_batch=contrast_batch, harmless_batch=harmless_batch
    )
    return Learner(
        engine=engine,
        objective=objective,
        defence=defence or OnlineDefence(OnlineDefence.Config()),
        ranks=ranks,
        next_safe_batch=context.next_safe_batch,
        next_contrast_batch=context.next_contrast_batch,
        next_harmless_batch=context.next_harmless_batch,
        frozen=frozen,
    )


def forward_of(module: PolicyModel) -> Any:
    """Return the forward pass that plug-ins are given, without an engine."""
    return lambda input_ids, attention_mask: as_outputs(module(input_ids, attention_mask))


def frozen_of(module: PolicyModel) -> Any:
    """Return the forward pass, without gradients, of the model that a defence compares with."""
    return torch.no_grad()(forward_of(module))


def attach(defence: OnlineDefence, module: PolicyModel) -> None:
    """Attach a defence that may read the weights of another model from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder, "other")
        if Need.COMPARED_WEIGHTS in defence.needs:
            saved_llama(other, seed=5)
        defence.attach(module, {Need.COMPARED_WEIGHTS: str(other)})


def saved_llama(folder: Path, *, seed: int) -> Path:
    """Return a folder with a tiny model, written once."""
    if not folder.is_dir():
        other = tiny_llama(seed=seed)
        other.config.save_pretrained(folder)
        # Whatever rank this is: the model's own way to save writes on the first one only.
        save_model(other, str(folder / "model.safetensors"))
    return folder


def uniform_forward(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
    """Give every token the same probability, 1 / VOCAB_SIZE."""
    logits = torch.zeros(*input_ids.shape, VOCAB_SIZE, requires_grad=True)
    return ModelOutputs(logits=logits, values=None)


class GradientRecorder(OnlineDefence):
    """A defence that only copies the gradients of each update."""

    def __init__(self, inner: OnlineDefence | None = None) -> None:
        super().__init__(OnlineDefence.Config())
        self.extra = inner
        self.gradients: dict[str, Tensor] = {}

    def extra_loss(self, forward: Any, context: StepContext) -> LossTerm | None:
        return None if self.extra is None else self.extra.extra_loss(forward, context)

    def on_gradients(self, shards: Any, context: StepContext) -> Metrics:
        self.gradients = {shard.name: shard.gradient.clone() for shard in shards}
        return {}


class RecordingAttack(Attack):
    """An attack that keeps the rollouts it was given and gives every token advantage 1."""

    def __init__(self) -> None:
        super().__init__(Attack.Config())
        self.observed: list[ScoredRollout] = []
        self.rollouts: list[ScoredRollout] = []

    def observe(self, rollout: ScoredRollout, context: Any) -> None:
        self.observed.append(rollout)

    def experience(self, rollout: ScoredRollout, shape_advantages: Any, context: Any) -> Experience:
        self.rollouts.append(rollout)
        return Experience(
            tokens=rollout.tokens,
            old_logprobs=rollout.old_logprobs,
            old_values=rollout.values,
            advantages=torch.ones_like(rollout.old_logprobs),
            returns=rollout.values,
            reference_logprobs=rollout.reference_logprobs,
            num_tokens=max(1, int(rollout.tokens.loss_mask.sum())),
            metrics={"policy/kl": 0.25},
        )


class ScriptedGenerate:
    """Answers every prompt with the same tokens and records what it was asked."""

    def __init__(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        self.token_ids = list(token_ids)
        self.logprobs = list(logprobs)
        self.seeds: list[int] = []
        self.prompt_ids: list[str] = []

    def __call__(self, prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        self.seeds.append(seed)
        self.prompt_ids += [prompt.id for prompt in prompts]
        return [completion_of(prompt, self.token_ids, self.logprobs) for prompt in prompts]


def completion_of(
    prompt: Prompt, token_ids: Sequence[int], logprobs: Sequence[float], *, finished: bool = True
) -> Completion:
    return Completion(
        prompt=prompt,
        token_ids=list(token_ids),
        logprobs=list(logprobs),
        text=f"answer to {prompt.text}",
        finished=finished,
        policy_version=0,
    )


def prompts_of(num_prompts: int) -> list[Prompt]:
    """Return prompts of one to three tokens."""
    return [
        Prompt(id=f"p{i}", text=f"request {i}", token_ids=[3 + i % 20] * (1 + i % 3))
        for i in range(num_prompts)
    ]
