"""The modules that learn: a policy with an optional value head, and a scoring model."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)


def attention_implementation() -> str:
    """Return the attention kernel for this machine.

    On CPU the eager kernel takes 0.6 times the time of SDPA in bfloat16 at this project's sizes.
    """
    return "sdpa" if torch.cuda.is_available() else "eager"


class PolicyModel(nn.Module):
    """A causal language model with, where asked for, a linear value head on its last states."""

    def __init__(self, policy: PreTrainedModel, *, value_head_seed: int | None) -> None:
        super().__init__()
        self.policy = policy
        self.value_head: nn.Linear | None = None
        if value_head_seed is not None:
            self.value_head = _seeded_linear(policy.config.hidden_size, value_head_seed)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return next-token logits [batch, seq, vocab] and values [batch, seq] or None.

        ``values[:, t]`` is the value of the state before the token at position t is chosen.
        """
        output = self.policy(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=self.value_head is not None,
        )
        if self.value_head is None:
            return output.logits, None
        states = output.hidden_states[-1]
        values = self.value_head(states.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return output.logits, pad(values[:, :-1], (1, 0))

    def served_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what the rollout engine serves: checkpoint name and parameter, tied ones once."""
        yield from self.policy.named_parameters()


class ScoreModel(nn.Module):
    """A sequence classifier: ``num_labels`` raw scores of each text."""

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.policy = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the raw scores [batch, num_labels]."""
        scores: Tensor = self.policy(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits
        return scores.float()

    def served_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield checkpoint name and parameter."""
        yield from self.policy.named_parameters()


def load_policy(
    path: Path | str, *, dtype: torch.dtype, value_head_seed: int | None, trust_remote_code: bool
) -> PolicyModel:
    """Return the causal language model of a Hugging Face folder, dropout off."""
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=attention_implementation(),
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )
    return PolicyModel(without_dropout(model), value_head_seed=value_head_seed)


def init_policy(config: PretrainedConfig, *, seed: int) -> PolicyModel:
    """Return a randomly initialised language model; bfloat16 weights come from fp32 draws."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_implementation(), dtype=torch.float32
    )
    return PolicyModel(without_dropout(model.to(torch.bfloat16)), value_head_seed=None)


def load_score_model(
    path: Path | str, *, num_labels: int, pad_token_id: int, seed: int, dtype: torch.dtype
) -> ScoreModel:
    """Return a classifier on the trunk of a folder; a new head is seeded.

    The model reads its score at the last token that is not padding, so it must know the id.
    """
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=num_labels,
        dtype=dtype,
        attn_implementation=attention_implementation(),
        pad_token_id=pad_token_id,
    )
    return ScoreModel(without_dropout(model))


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with every dropout probability at 0: each pass is the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def _seeded_linear(size: int, seed: int) -> nn.Linear:
    """Return a linear head that is the same on every rank and untouched by other draws."""
    head = nn.Linear(size, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, size, generator=generator) / size**0.5)
        head.bias.zero_()
    return head
