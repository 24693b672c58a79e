from dataclasses import replace

import pytest
import torch
from fakes import context_of, experience_of, referenced_pairs, tiny_policy, token_batch
from torch import nn

from rpa_ray.attacks import ATTACKS
from rpa_ray.defences import DEFENCES, OFFLINE_DEFENCES
from rpa_ray.plugin import (
    Attack,
    Objective,
    OfflineDefence,
    OnlineDefence,
    global_count,
    global_mean,
    parameters_of,
)
from rpa_ray.types import (
    Experience,
    LabelledBatch,
    PairBatch,
    micro_batches,
    num_rows,
    num_tokens,
    on_device,
)


def test_a_global_count_adds_the_trues_of_every_rank() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert global_count(mask, context_of()) == 3
    assert global_count(mask, context_of(num_ranks=4)) == 12


def test_a_global_mean_weighs_every_value_alike() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert global_mean(values, context_of()) == (3.0, 3)
    assert global_mean(values, context_of(num_ranks=2)) == (3.0, 6)


def test_a_mean_over_nothing_is_0_over_0_values() -> None:
    assert global_mean(torch.zeros(0), context_of()) == (0.0, 0)


def test_trained_parameters_come_once_each_and_frozen_ones_not_at_all() -> None:
    module = tiny_policy()
    assert module.value_head is not None
    module.value_head.bias.requires_grad_(False)
    names = [name for name, _ in parameters_of(module)]
    assert len(names) == len(set(names))
    assert "policy.model.embed_tokens.weight" in names
    assert "policy.lm_head.weight" not in names  # tied to the embedding
    assert "value_head.weight" in names
    assert "value_head.bias" not in names


@pytest.mark.parametrize(
    ("plugins", "base"),
    [(ATTACKS, Attack), (DEFENCES, OnlineDefence), (OFFLINE_DEFENCES, OfflineDefence)],
)
def test_every_plugin_is_listed_under_the_name_of_its_config(
    plugins: dict[str, type[Attack | OnlineDefence | OfflineDefence]], base: type
) -> None:
    for name, plugin in plugins.items():
        assert issubclass(plugin, base)
        assert plugin.Config().name == name


def test_a_plain_objective_makes_one_update_and_has_nothing_to_resume() -> None:
    objective: Objective[object, object] = Objective()  # type: ignore[type-var]
    assert objective.num_epochs(token_batch([[1, 2]])) == 1
    assert objective.state_dict() == {}


def test_an_attack_without_rollouts_makes_no_experience() -> None:
    with pytest.raises(NotImplementedError):
        Attack(Attack.Config()).experience(None, lambda a, c: a, context_of())  # type: ignore[arg-type]


def test_a_defence_attaches_nothing_by_default() -> None:
    module = nn.Linear(2, 2)
    before = dict(module.named_parameters())
    OnlineDefence(OnlineDefence.Config()).attach(module, {})
    assert dict(module.named_parameters()).keys() == before.keys()
    assert all(p.requires_grad for p in module.parameters())


def test_rows_of_a_batch_count_pairs_once() -> None:
    tokens = token_batch([[1, 2], [3, 4], [5, 6]])
    experience = experience_of(tokens)
    labelled = LabelledBatch(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        labels=torch.tensor([0, 1, 0]),
    )
    assert num_rows(tokens) == 3
    assert num_rows(PairBatch(chosen=tokens, rejected=tokens)) == 3
    assert num_rows(referenced_pairs(tokens, tokens)) == 3
    assert num_rows(experience) == 3
    assert num_rows(labelled) == 3


def test_micro_batches_are_the_rows_in_order_and_the_last_is_smaller() -> None:
    tokens = token_batch([[1, row] for row in range(5)])
    parts = micro_batches(tokens, 2)
    assert [part.input_ids[:, 1].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [len(part.loss_mask) for part in parts] == [2, 2, 1]
    assert micro_batches(tokens, 5) == [tokens]


def test_every_tensor_of_a_batch_is_cut_at_the_same_rows() -> None:
    tokens = token_batch([[1, row] for row in range(3)])
    column = torch.arange(3.0)[:, None].expand(3, 2)
    names = ("old_logprobs", "old_values", "reference_logprobs", "advantages", "returns")
    experience = Experience(tokens=tokens, num_tokens=3, **dict.fromkeys(names, column))
    last = micro_batches(experience, 2)[1]
    assert last.tokens.input_ids.tolist() == [[1, 2]]
    for name in names:
        assert getattr(last, name).tolist() == [[2.0, 2.0]]
    # still the tokens of the whole step, over micro-batches and ranks
    assert last.num_tokens == 3
    pairs = micro_batches(PairBatch(chosen=tokens, rejected=tokens), 1)
    assert [int(p.rejected.input_ids[0, 1]) for p in pairs] == [0, 1, 2]
    referenced = micro_batches(referenced_pairs(tokens, tokens), 2)[1]
    assert int(referenced.chosen.input_ids[0, 1]) == 2
    assert referenced.reference_chosen_logprobs.tolist() == [-2.0]
    assert referenced.reference_rejected_logprobs.tolist() == [-12.0]
    labelled = LabelledBatch(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        labels=torch.tensor([7, 8, 9]),
    )
    assert [part.labels.tolist() for part in micro_batches(labelled, 2)] == [[7, 8], [9]]


def test_moving_a_batch_moves_all_of_its_tensors() -> None:
    tokens = token_batch([[1, 2], [3, 4]])
    pairs = on_device(PairBatch(chosen=tokens, rejected=tokens), torch.device("meta"))
    assert {t.device.type for side in (pairs.chosen, pairs.rejected) for t in tensors(side)} == {
        "meta"
    }
    experience = replace(experience_of(tokens), metrics={"reward/mean": 1.0})
    moved = on_device(experience, torch.device("meta"))
    assert {moved.advantages.device.type, moved.tokens.loss_mask.device.type} == {"meta"}
    assert moved.metrics == {"reward/mean": 1.0}
    referenced = on_device(referenced_pairs(tokens, tokens), torch.device("meta"))
    assert referenced.reference_rejected_logprobs.device.type == "meta"


def test_tokens_that_are_read_are_counted_without_padding() -> None:
    # rows of 3 and 2 tokens, and of 2 and 4: prompts are read too
    tokens, other = token_batch([[1, 2, 3], [3, 4]]), token_batch([[1, 2], [3, 4, 5, 6]])
    labelled = LabelledBatch(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        labels=torch.zeros(2).int(),
    )
    assert num_tokens(tokens) == num_tokens(experience_of(tokens)) == num_tokens(labelled) == 5
    assert num_tokens(PairBatch(chosen=tokens, rejected=other)) == 11
    assert num_tokens(referenced_pairs(tokens, other)) == 11


def tensors(batch: object) -> list[torch.Tensor]:
    return [getattr(batch, name) for name in ("input_ids", "attention_mask", "loss_mask")]
