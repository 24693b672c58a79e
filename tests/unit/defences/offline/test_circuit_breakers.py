"""Circuit Breakers: both forms against their formulas written out, and what they ask for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import tiny_policy, token_batch
from hardening import gradients_of, step_of
from torch import Tensor

from rpa_ray.config import LoraSettings
from rpa_ray.defences.offline.circuit_breakers import CircuitBreakers, _layers, schedule
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.plugin import Need
from rpa_ray.types import PairBatch, TokenBatch

PAIRS = PairBatch(
    chosen=token_batch([[1, 4, 14, 15, 2], [1, 5, 2]], num_prompt_tokens=2, width=6),
    rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], num_prompt_tokens=2, width=6),
)
HARMLESS = token_batch([[1, 20, 21, 22, 9, 8, 7], [1, 3, 22]], num_prompt_tokens=2)


def breakers(**settings: Any) -> CircuitBreakers:
    return CircuitBreakers(CircuitBreakers.Config(**settings))


def original(**settings: Any) -> CircuitBreakers:
    return breakers(variant="original", strength=10.0, **settings)


def policy(seed: int = 0) -> PolicyModel:
    return tiny_policy(seed=seed, value_head=False)


def states(module: PolicyModel, rows: TokenBatch) -> Any:
    """Return logits and hidden states as transformers gives them."""
    return module.policy(
        rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True
    )


def cross_entropy(logits: Tensor, rows: TokenBatch) -> Tensor:
    marked = rows.loss_mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][marked], rows.input_ids[:, 1:][marked])


def cosine(module: PolicyModel, start: PolicyModel, layer: int) -> Tensor:
    """Return the mean of relu(cos) over all tokens of the unsafe rows, one at a time."""
    now, then = (states(m, PAIRS.rejected).hidden_states[layer] for m in (module, start))
    found = []
    for row, length in enumerate([6, 4]):
        for place in range(length):
            h, h0 = now[row, place], then[row, place].detach()
            found.append((h @ h0 / (h.norm() * h0.norm())).clamp(min=0.0))
    return torch.stack(found).mean()


def retained(module: PolicyModel, start: PolicyModel) -> Tensor:
    """Return the mean distance over all states and tokens of refusals and harmless answers."""
    found = []
    for rows in (PAIRS.chosen, HARMLESS):
        now, then = (states(m, rows).hidden_states for m in (module, start))
        for h, h0 in zip(now, then, strict=True):
            for row, length in enumerate(rows.attention_mask.sum(dim=1).tolist()):
                found += list((h - h0.detach())[row, :length].norm(dim=-1))
    return torch.stack(found).mean()


def test_a_step_of_the_papers_form_is_that_of_the_formula() -> None:
    module, start = policy(), policy(seed=5)
    defence = breakers(strength=2.0, alpha=0.5, layers=[1, 2])
    found = step_of(defence, module, pairs=PAIRS, start=start).loss
    out, unsafe = states(module, PAIRS.rejected), PAIRS.rejected
    read = [
        cross_entropy(module.policy.lm_head(module.policy.model.norm(h)), unsafe)
        for h in out.hidden_states
    ]
    level = 1 + (cross_entropy(out.logits, unsafe) + torch.stack(read).sum()) / 3
    turned = (cosine(module, start, 1) + cosine(module, start, 2)) / 2
    kept = cross_entropy(states(module, PAIRS.chosen).logits, PAIRS.chosen)
    agree(found, kept + 2.0 * turned - 0.5 * level.log(), module)


@pytest.mark.parametrize("update", [30, 150])
def test_a_step_of_the_original_form_is_that_of_the_formula(update: int) -> None:
    module, start = policy(), policy(seed=5)
    term = step_of(
        original(layers=[2]), module, pairs=PAIRS, harmless=HARMLESS, start=start, update=update
    )
    share = update / 300
    expected = 10 * share * retained(module, start) + 10 * (1 - share) * cosine(module, start, 2)
    agree(term.loss, expected, module)


def agree(found: Tensor, expected: Tensor, module: PolicyModel) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = gradients_of(expected, module)
    for name, gradient in gradients_of(found, module).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5)


def test_where_it_begins_states_are_the_same() -> None:
    term = step_of(original(), policy(), pairs=PAIRS, harmless=HARMLESS)
    assert term.metrics["defence/unsafe_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert term.metrics["defence/retain_distance"] == 0.0
    assert float(term.loss.detach()) == pytest.approx(10.0, abs=1e-5)


def test_the_original_schedule_goes_from_rerouting_to_retaining() -> None:
    assert [schedule(update, 10.0) for update in (0, 150, 300)] == [(0, 10), (5, 5), (10, 0)]
    assert schedule(400, 10.0) == (10, 0)


def test_longer_states_turn_nothing_and_orthogonal_ones_are_left_alone() -> None:
    start = policy()
    for change, expected in ((2.0, 1.0), (-1.0, 0.0)):
        module = policy()
        with torch.no_grad():  # the embeddings are hidden state 0
            module.policy.model.embed_tokens.weight.mul_(change)
        defence = breakers(alpha=0.0, layers=[0])
        term = step_of(defence, module, pairs=PAIRS, start=start)
        assert term.metrics["defence/unsafe_cosine"] == pytest.approx(expected, abs=1e-6)


def test_padding_changes_nothing() -> None:
    wider = PairBatch(
        chosen=token_batch([[1, 4, 14, 15, 2], [1, 5, 2]], num_prompt_tokens=2, width=9),
        rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], num_prompt_tokens=2, width=9),
    )
    for defence in (breakers, original):
        losses = [
            step_of(
                defence(), policy(), pairs=pairs, harmless=HARMLESS, start=policy(5), update=100
            ).loss
            for pairs in (PAIRS, wider)
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


def test_ranks_that_hold_the_same_rows_agree() -> None:
    for defence in (breakers, original):
        one, two = (
            step_of(
                defence(),
                policy(),
                pairs=PAIRS,
                harmless=HARMLESS,
                start=policy(5),
                num_ranks=num_ranks,
                update=100,
            ).metrics
            for num_ranks in (1, 2)
        )
        assert one == pytest.approx(two, rel=1e-5)


def test_layers_are_those_of_32_blocks_by_depth() -> None:
    assert _layers(None, 32) == [10, 20]
    assert _layers(None, 16) == [5, 10]
    assert _layers(None, 2) == [1]
    assert _layers([0, 2], 2) == [0, 2]
    for wrong in ([3], [-1], []):
        with pytest.raises(ValueError, match=r"^defence\.layers must be numbers from 0 to 2 "):
            _layers(wrong, 2)


def test_without_strength_and_ascent_refusals_alone_are_learned() -> None:
    module = policy()
    term = step_of(breakers(strength=0.0, alpha=0.0), module, pairs=PAIRS)
    torch.testing.assert_close(
        term.loss, cross_entropy(states(module, PAIRS.chosen).logits, PAIRS.chosen)
    )
    assert list(term.metrics) == ["train/loss"]


def test_it_asks_for_what_it_reads() -> None:
    assert breakers().needs == {Need.CONTRAST_BATCH}
    assert original().needs == {Need.CONTRAST_BATCH, Need.HARMLESS_BATCH}
    adapters = LoraSettings(rank=16, alpha=16)
    assert (breakers().lora, original(lora=adapters).lora) == (None, adapters)
