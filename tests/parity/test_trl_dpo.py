"""Our DPO against the trainer of TRL 1.16, on the batch that TRL makes of three pairs."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from fakes import forward_of, loss_of, tiny_llama
from tiny_models import TOLERANCE, assert_same_gradients, gradients_of, moved, word_tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from rpa_ray.attacks.dpo import DPO
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.ops.logprobs import answer_logprobs
from rpa_ray.types import LossTerm, ReferencedPairBatch, TokenBatch

# Prompts and answers of different lengths; TRL adds the end mark.
PAIRS = [
    {"prompt": "w5 w6", "chosen": " w7 w8 w9", "rejected": " w10"},
    {"prompt": "w11", "chosen": " w4", "rejected": " w12 w13 w14 w15"},
    {"prompt": "w16 w17 w18", "chosen": " w19 w20", "rejected": " w21 w22"},
]


def reference() -> LlamaForCausalLM:
    return tiny_llama(seed=1, tied=False)


def policy() -> LlamaForCausalLM:
    return moved(reference(), distance=0.05)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return TRL's trainer with our weights; the loss and its settings are TRL's defaults."""
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=policy(),
        ref_model=reference(),
        args=DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("dpo")),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=word_tokenizer(),
    )


@pytest.fixture(scope="module")
def trl_batch(trainer: Any) -> dict[str, Tensor]:
    return trainer.data_collator(list(trainer.train_dataset))


@pytest.fixture(scope="module")
def trl_loss(trainer: Any, trl_batch: dict[str, Tensor]) -> Tensor:
    """Return the loss; its gradients stay on the trainer's model."""
    loss = trainer.compute_loss(trainer.model, trl_batch)
    loss.backward()
    return loss.detach()


def pairs_of(trl_batch: dict[str, Tensor]) -> ReferencedPairBatch:
    """Return TRL's stacked rows as our batch, with log-probabilities of our own reference."""
    chosen, rejected = (
        TokenBatch(input_ids=ids, attention_mask=read.bool(), loss_mask=answer.bool())
        for ids, read, answer in zip(
            trl_batch["input_ids"].chunk(2),
            trl_batch["attention_mask"].chunk(2),
            trl_batch["completion_mask"].chunk(2),
            strict=True,
        )
    )
    model = reference()

    def logprobs(tokens: TokenBatch) -> Tensor:
        with torch.no_grad():
            logits = model(tokens.input_ids, tokens.attention_mask).logits
        return answer_logprobs(logits, tokens.input_ids, tokens.loss_mask)

    return ReferencedPairBatch(
        chosen=chosen,
        rejected=rejected,
        reference_chosen_logprobs=logprobs(chosen),
        reference_rejected_logprobs=logprobs(rejected),
    )


def our_loss(
    trl_batch: dict[str, Tensor], *, beta: float = 0.1
) -> tuple[LossTerm, dict[str, Tensor]]:
    module = PolicyModel(policy(), value_head_seed=None)
    term = loss_of(DPO(DPO.Config(beta=beta)), forward_of(module), pairs_of(trl_batch))
    term.loss.backward()
    return term, gradients_of(module.policy)


def test_the_dpo_loss_is_trls(trl_batch: dict[str, Tensor], trl_loss: Tensor) -> None:
    term, _ = our_loss(trl_batch)
    torch.testing.assert_close(term.loss.detach(), trl_loss, **TOLERANCE)


def test_the_dpo_gradient_of_every_parameter_is_trls(
    trainer: Any, trl_batch: dict[str, Tensor], trl_loss: Tensor
) -> None:
    _, gradients = our_loss(trl_batch)
    assert_same_gradients(gradients, gradients_of(trainer.model))


def test_what_dpo_reports_is_what_trl_reports(
    trainer: Any, trl_batch: dict[str, Tensor], trl_loss: Tensor
) -> None:
    term, _ = our_loss(trl_batch)
    reported = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    names = {
        "train/margin": "rewards/margins",
        "train/accuracy": "rewards/accuracies",
        "train/chosen_logprobs": "logps/chosen",
        "train/rejected_logprobs": "logps/rejected",
    }
    for ours, theirs in names.items():
        assert term.metrics[ours] == pytest.approx(reported[theirs], rel=1e-5, abs=1e-5), ours


def test_another_beta_gives_another_loss_and_other_gradients(
    trainer: Any, trl_batch: dict[str, Tensor], trl_loss: Tensor
) -> None:
    term, gradients = our_loss(trl_batch, beta=0.2)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(term.loss.detach(), trl_loss, **TOLERANCE)
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, gradients_of(trainer.model))
