"""What PPOTrainer of TRL 0.9.6 makes of given models and answers; a program of its own.

    PYTHONPATH=<folder of TRL 0.9.6> python trl_ppo_values.py CASES RESULTS

Both files are torch archives: a list of cases (see `Case` in test_trl_ppo.py) and a list of the
numbers of each. Nothing of rpa_ray is imported, and nothing of TRL is changed.
"""

import sys
from typing import Any

import torch
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

assert trl.__version__ == "0.9.6", f"TRL must be 0.9.6, got {trl.__version__} at {trl.__file__}."


def model_of(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """Return TRL's model with a value head that has these weights."""
    model = AutoModelForCausalLMWithValueHead(LlamaForCausalLM(LlamaConfig(**config)))
    model.is_peft_model = False  # `from_pretrained` would set it
    incompatible = torch.nn.Module.load_state_dict(model, weights)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    return model


def padding_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer that the trainer pads with; it reads no text."""
    tokenizer = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def values_of(case: dict[str, Any]) -> dict[str, Any]:
    """Return what `PPOTrainer.step` computes of one batch, up to the gradients of one update."""
    model = model_of(case["config"], case["old_policy"])
    reference = model_of(case["config"], case["reference"])
    queries, responses, scores = case["queries"], case["responses"], case["scores"]
    config = PPOConfig(
        batch_size=len(queries), mini_batch_size=len(queries), log_with=None, **case["settings"]
    )
    trainer = PPOTrainer(config, model, reference, padding_tokenizer())
    inputs = trainer.prepare_model_inputs(queries, responses)

    with torch.no_grad():
        old_logprobs, _, values, mask = trainer.batched_forward_pass(
            model, queries, responses, inputs
        )
        reference_logprobs, *_ = trainer.batched_forward_pass(reference, queries, responses, inputs)
        rewards, non_score_rewards, kls = trainer.compute_rewards(
            scores, old_logprobs, reference_logprobs, mask
        )
        values, advantages, returns = trainer.compute_advantages(values, rewards, mask)

    torch.nn.Module.load_state_dict(model, case["policy"])
    logprobs, logits, new_values, _ = trainer.batched_forward_pass(
        model, queries, responses, inputs, return_logits=True
    )
    policy_loss, value_loss, stats = trainer.loss(
        old_logprobs, values, logits, new_values, logprobs, mask, advantages, returns
    )
    (policy_loss + value_loss).backward()

    step = trainer.record_step_stats(
        kl_coef=trainer.kl_ctl.value,
        masks=mask,
        kls=kls,
        scores=scores,
        logprobs=old_logprobs,
        ref_logprobs=reference_logprobs,
        non_score_reward=non_score_rewards,
        queries=queries,
        responses=responses,
        train_stats={name: value[None] for name, value in stats.items()},
    )
    trainer.kl_ctl.update(step["objective/kl"].numpy(), config.batch_size)
    return {
        "mask": mask.bool(),
        "rewards": rewards,
        "advantages": advantages,
        "returns": returns,
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "clip_frac": float(stats["policy/clipfrac"]),
        "value_clip_frac": float(stats["val/clipfrac"]),
        "entropy": float(stats["policy/entropy"]),
        "kl": float(step["objective/kl"]),
        "next_kl_coef": float(trainer.kl_ctl.value),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
    }


if __name__ == "__main__":
    cases_file, results_file = sys.argv[1:]
    torch.save([values_of(case) for case in torch.load(cases_file)], results_file)
