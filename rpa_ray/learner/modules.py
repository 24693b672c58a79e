"""The modules that learn: a policy with an optional value head, and a scoring model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming, rename_source_key

from rpa_ray.config import ConfigError, LoraSettings
from rpa_ray.scoring.batching import class_scores
from rpa_ray.scoring.weights import require_every_weight
from rpa_ray.types import LowRank

_ADAPTER = "default"
_BASE_LAYER = ".base_layer."
"""What peft puts into the name of a weight that has an adapter beside it."""


def attention_implementation() -> str:
    """Return the attention kernel for this machine.

    On CPU the eager kernel takes 0.6 times the time of SDPA in bfloat16 at this project's sizes.
    """
    return "sdpa" if torch.cuda.is_available() else "eager"


class PolicyModel(nn.Module):
    """A causal language model with, where asked for, linear value heads on its last states."""

    def __init__(self, policy: PreTrainedModel, *, value_head_seed: int | None) -> None:
        super().__init__()
        self.policy = policy
        self.value_head: nn.Linear | None = None
        self.cost_head: nn.Linear | None = None
        if value_head_seed is not None:
            self.value_head = _seeded_linear(policy.config.hidden_size, value_head_seed)

    @property
    def generation_config(self) -> GenerationConfig:
        """Return how transformers generates with the model; without a file, as its config says."""
        config = self.policy.generation_config
        assert config is not None  # a causal language model has one
        return config

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return int(self.policy.config.get_text_config().vocab_size)

    def add_cost_head(self, seed: int) -> None:
        """Add a second value head, for costs."""
        self.cost_head = _seeded_linear(self.policy.config.hidden_size, seed + 1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return next-token logits [batch, seq, vocab], values and costs' values [batch, seq].

        ``values[:, t]`` is the value of the state before the token at position t is chosen; None
        without the head.
        """
        heads = (self.value_head, self.cost_head)
        output = self.policy(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=any(head is not None for head in heads),
        )
        values, cost_values = (_values(head, output.hidden_states) for head in heads)
        return output.logits, values, cost_values

    def served_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what the rollout engine serves: checkpoint name and parameter, tied ones once.

        Adapters are left out: they are served inside the weights that they stand beside.
        """
        named = self._checkpoint_names()
        for name, parameter in self.policy.named_parameters():
            if not _is_adapter(name):
                yield named(name.replace(_BASE_LAYER, ".")), parameter

    def adapters(self) -> dict[str, LowRank]:
        """Return the adapter beside each weight that has one, by the weight's checkpoint name."""
        named = self._checkpoint_names()
        return {
            named(f"{name}.weight"): LowRank(
                down=module.lora_A[_ADAPTER].weight,
                up=module.lora_B[_ADAPTER].weight,
                scale=float(module.scaling[_ADAPTER]),
            )
            for name, module in self._adapted_layers()
        }

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Be the model that the adapters were put beside, while the context holds."""
        layers = [layer for _, layer in self._adapted_layers()]
        # peft's own switch would also freeze the adapters, whose backward pass may be to come.
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def _adapted_layers(self) -> Iterator[tuple[str, Any]]:
        for name, module in self.policy.named_modules():
            if hasattr(module, "lora_A") and _ADAPTER in module.lora_A:
                yield name, module

    def _checkpoint_names(self) -> Callable[[str], str]:
        """Return what maps a parameter's name to the one that checkpoints have, and vLLM reads.

        Some modules of transformers are called otherwise (GPT-NeoX's head is ``embed_out`` there).
        """
        # As `save_pretrained` does, which would also write old names that a checkpoint was read in.
        renamings = [
            renaming.reverse_transform()
            for renaming in reversed(get_model_conversion_mapping(self.policy, add_legacy=False))
            if isinstance(renaming, WeightRenaming) and not isinstance(renaming, PrefixChange)
        ]
        return lambda name: rename_source_key(name, renamings, [], reverse=True)[0]


class ScoreModel(nn.Module):
    """A sequence classifier: ``num_labels`` raw scores of each text."""

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.policy = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the raw scores [batch, num_labels]."""
        return class_scores(self.policy, input_ids, attention_mask).float()

    def served_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield checkpoint name and parameter."""
        yield from self.policy.named_parameters()

    def adapters(self) -> dict[str, LowRank]:
        """Return none: scoring models are trained whole."""
        return {}


def load_policy(
    path: Path | str, *, dtype: torch.dtype, value_head_seed: int | None = None
) -> PolicyModel:
    """Return the causal language model of a Hugging Face folder, dropout off.

    Raises:
        ValueError: It lacks weights.
    """
    model, loading = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=attention_implementation(),
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    require_every_weight(path, loading["missing_keys"])
    return PolicyModel(without_dropout(model), value_head_seed=value_head_seed)


def add_lora(
    model: PolicyModel, settings: LoraSettings, *, seed: int, where: str = "attack.lora"
) -> None:
    """Freeze the policy's weights and put low-rank adapters beside its linear layers.

    The adapters are the same on every rank and begin as no change; a value head stays trained.
    ``where`` is the config path of the settings.

    Raises:
        ConfigError: no layer has one of the names in ``target_modules``, or one that has cannot be
            served with its adapter.

    Source: Hu et al. 2021 (arXiv:2106.09685), by the library peft.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model.policy, adapter_name=_ADAPTER)
        except ValueError as error:
            raise ConfigError(
                f"{where}.target_modules",
                "name linear layers of the model",
                settings.target_modules,
                f"{error}",
            ) from error
    _refuse_unservable(model, settings, where)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(_is_adapter(name))
        if _is_adapter(name):
            parameter.data = parameter.data.to(model.policy.dtype)


def _refuse_unservable(model: PolicyModel, settings: LoraSettings, where: str) -> None:
    """Refuse adapters that no served weight would show: the engine would sample another model.

    Raises:
        ConfigError: an adapted layer is an embedding, shares its weight with another layer, or is
            no ``nn.Linear`` (GPT-2's layers keep their weight transposed).
    """
    own = {name.replace(_BASE_LAYER, ".") for name, _ in model.policy.named_parameters()}
    for name, module in model.policy.named_modules():
        if not (hasattr(module, "lora_A") and hasattr(module, "base_layer")):
            continue
        if not isinstance(module.base_layer, nn.Linear) or f"{name}.weight" not in own:
            raise ConfigError(
                f"{where}.target_modules",
                "name nn.Linear layers with a weight of their own",
                settings.target_modules,
                f"{name} is none: name others, or train every weight ({where}: null).",
            )


def init_policy(config: PretrainedConfig, *, seed: int, dtype: torch.dtype) -> PolicyModel:
    """Return a randomly initialised language model; the draws are in float32 in either type."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_implementation(), dtype=torch.float32
    )
    return PolicyModel(without_dropout(model.to(dtype)), value_head_seed=None)


def checkpoint_layers(model: PolicyModel | ScoreModel) -> None:
    """Keep of each layer its input for the backward pass, and compute the rest once more there.

    Hooks in a layer run again with it. Losses may be of what is inside a layer.

    Raises:
        ConfigError: the model's layers cannot do it.

    Source: Chen et al. 2016 (arXiv:1604.06174), by torch's non-reentrant form.
    """
    policy = model.policy
    if not policy.supports_gradient_checkpointing:
        raise ConfigError(
            "cluster.gradient_checkpointing",
            "be false for a model whose layers cannot be computed again",
            True,
            f"{type(policy).__name__} is one: set it to false.",
        )
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    # It has the embeddings need a gradient, which reentrant passes alone ask for.
    policy.disable_input_require_grads()
    for module in policy.modules():
        if getattr(module, "gradient_checkpointing", False):
            # Layers look at this flag of theirs; of the rest of a loaded model it stays False.
            module.training = True


def load_score_model(
    path: Path | str, *, num_labels: int, pad_token_id: int, seed: int, dtype: torch.dtype
) -> ScoreModel:
    """Return a classifier on the trunk of a folder; a new head is seeded.

    It keeps the id of the padding, which others who load its folder need.

    Raises:
        ValueError: The trunk lacks weights.
    """
    torch.manual_seed(seed)
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=num_labels,
        dtype=dtype,
        attn_implementation=attention_implementation(),
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    # Not when it is loaded: an embedding is not trained that belongs to the padding of its config,
    # and this may be the end of sequence, which is a token like others.
    model.config.get_text_config().pad_token_id = pad_token_id
    trunk = f"{model.base_model_prefix}."
    # A pooler is a part of the head: language models are saved without it (BERT).
    lost = {n for n in loading["missing_keys"] if n.startswith(trunk)}
    require_every_weight(path, {n for n in lost if not n.startswith(f"{trunk}pooler.")})
    return ScoreModel(without_dropout(model))


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with every dropout probability at 0: each pass is the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def _values(head: nn.Linear | None, hidden_states: Sequence[Tensor] | None) -> Tensor | None:
    """Return what a head makes of the last states, each value at the token that it precedes."""
    if head is None:
        return None
    assert hidden_states is not None
    values = head(hidden_states[-1].to(head.weight.dtype)).squeeze(-1).float()
    return pad(values[:, :-1], (1, 0))


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _seeded_linear(size: int, seed: int) -> nn.Linear:
    """Return a linear head that is the same on every rank and untouched by other draws."""
    head = nn.Linear(size, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, size, generator=generator) / size**0.5)
        head.bias.zero_()
    return head
