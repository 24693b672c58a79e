"""RMU: both forms against their formulas written out, and what they train."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import context_of, forward_of, tiny_config, tiny_policy, token_batch
from hardening import gradients_of, step_of
from torch import Tensor
from transformers import LlamaForCausalLM

from rpa_ray.defences.offline.rmu import RMU, _layer, direction
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.plugin import Need
from rpa_ray.types import PairBatch, TokenBatch

PAIRS = PairBatch(
    chosen=token_batch([[1, 4, 14, 15, 2], [1, 5, 2]], num_prompt_tokens=2, width=6),
    rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], num_prompt_tokens=2, width=6),
)
HARMLESS = token_batch([[1, 20, 21, 22, 9, 8, 7], [1, 3, 22]], num_prompt_tokens=2)


def rmu(**settings: Any) -> RMU:
    return RMU(RMU.Config(**settings))


def original(**settings: Any) -> RMU:
    return rmu(variant="original", **settings)


def policy(seed: int = 0) -> PolicyModel:
    return tiny_policy(seed=seed, value_head=False)


def block_output(module: PolicyModel, rows: TokenBatch, layer: int) -> Tensor:
    """Return what a block of a Llama makes of rows: hidden state ``layer + 1``, not the last."""
    out = module.policy(
        rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True
    )
    states: Tensor = out.hidden_states[layer + 1]
    return states


def cross_entropy(logits: Tensor, rows: TokenBatch) -> Tensor:
    marked = rows.loss_mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][marked], rows.input_ids[:, 1:][marked])


def agree(found: Tensor, expected: Tensor, module: PolicyModel) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = gradients_of(expected, module)
    for name, gradient in gradients_of(found, module).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5)


def test_a_step_of_the_papers_form_is_that_of_the_formula() -> None:
    module, unsafe = policy(), PAIRS.rejected
    found = step_of(rmu(strength=2.0, alpha=0.5, target_norm=3.0), module, pairs=PAIRS).loss
    out = module.policy(
        unsafe.input_ids, attention_mask=unsafe.attention_mask, output_hidden_states=True
    )
    target = 3.0 * direction(32, 0)
    answers = block_output(module, unsafe, 0)[unsafe.loss_mask]  # 4 and 2 tokens
    forget = sum((h - target).square().mean() for h in answers) / 6
    read = [
        cross_entropy(module.policy.lm_head(module.policy.model.norm(h)), unsafe)
        for h in out.hidden_states
    ]
    level = 1 + (cross_entropy(out.logits, unsafe) + torch.stack(read).sum()) / 3
    safe = PAIRS.chosen
    kept = module.policy(safe.input_ids, attention_mask=safe.attention_mask).logits
    agree(found, cross_entropy(kept, safe) + 2.0 * forget - 0.5 * level.log(), module)


def test_a_step_of_the_original_form_is_that_of_the_formula() -> None:
    module, start = policy(), policy(seed=5)
    defence = original(strength=2.0, retain_weight=100.0, target_norm=6.5)
    found = step_of(defence, module, pairs=PAIRS, harmless=HARMLESS, start=start).loss
    unsafe = block_output(module, PAIRS.rejected, 0)
    forget = (unsafe - 6.5 * direction(32, 0)).square().mean()  # padding included
    now, then = (block_output(m, HARMLESS, 0) for m in (module, start))
    agree(found, 2.0 * forget + 100.0 * (now - then.detach()).square().mean(), module)


def test_the_original_form_trains_three_down_projections_alone() -> None:
    torch.manual_seed(0)
    module = PolicyModel(LlamaForCausalLM(tiny_config(num_hidden_layers=6)), value_head_seed=None)
    loss = step_of(original(layer=3), module, pairs=PAIRS, harmless=HARMLESS).loss
    found = gradients_of(loss, module)
    assert set(found) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}
    assert all(gradient.any() for gradient in found.values())


def test_the_target_is_a_direction_of_length_c() -> None:
    u = direction(64, 3)
    assert float(u.norm()) == pytest.approx(1.0)
    assert bool((u >= 0).all()) and torch.equal(u, direction(64, 3))
    assert not torch.equal(u, direction(64, 4))
    # u = (0.2, 0.4, 0.4) is (1, 2, 2) / 3 once it has length 1
    drawn = torch.tensor([0.2, 0.4, 0.4])
    found = 6.5 * drawn / drawn.norm()
    assert found.tolist() == pytest.approx([2.166667, 4.333333, 4.333333], abs=1e-6)


def test_c_is_measured_on_the_first_unsafe_batch_and_kept() -> None:
    module = policy()
    term = step_of(rmu(multiple=2.0), module, pairs=PAIRS)
    norms = block_output(module, PAIRS.rejected, 0).norm(dim=-1)[PAIRS.rejected.attention_mask]
    expected = 2.0 * float(norms.detach().median())
    assert term.metrics["defence/target_norm"] == pytest.approx(expected, rel=1e-6)


def test_after_a_restart_c_is_what_was_measured_and_not_measured_again() -> None:
    module, resumed = policy(), rmu(multiple=2.0).hooks()
    assert resumed.state_dict() == {}
    resumed.load_state_dict({"target_norm": 7.0})
    resumed.attach(module, {})
    term = resumed.extra_loss(forward_of(module), context_of(contrast_batch=PAIRS))
    assert term is not None and term.metrics["defence/target_norm"] == 7.0
    assert resumed.state_dict() == {"target_norm": 7.0}


def test_states_at_the_target_have_no_error_and_those_of_the_start_retain_none() -> None:
    term = step_of(original(), policy(), pairs=PAIRS, harmless=HARMLESS)
    assert term.metrics["defence/retain_error"] == 0.0
    module = policy()
    with torch.no_grad():  # a block that adds nothing, to embeddings that are the target
        module.policy.model.embed_tokens.weight.copy_(2.0 * direction(32, 0).expand(24, 32))
        module.policy.model.layers[0].self_attn.o_proj.weight.zero_()
        module.policy.model.layers[0].mlp.down_proj.weight.zero_()
    there = step_of(rmu(target_norm=2.0, alpha=0.0), module, pairs=PAIRS)
    assert there.metrics["defence/forget_error"] == pytest.approx(0.0, abs=1e-10)


def test_what_is_masked_changes_nothing_in_the_papers_form() -> None:
    wider = PairBatch(
        chosen=token_batch([[1, 4, 14, 15, 2], [1, 5, 2]], num_prompt_tokens=2, width=9),
        rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], num_prompt_tokens=2, width=9),
    )
    narrow, wide = (step_of(rmu(), policy(), pairs=pairs) for pairs in (PAIRS, wider))
    assert narrow.metrics == pytest.approx(wide.metrics, rel=1e-5)


def test_ranks_that_hold_the_same_rows_agree() -> None:
    for defence in (rmu, original):
        one, two = (
            step_of(
                defence(),
                policy(),
                pairs=PAIRS,
                harmless=HARMLESS,
                start=policy(5),
                num_ranks=num_ranks,
            ).metrics
            for num_ranks in (1, 2)
        )
        assert one == pytest.approx(two, rel=1e-5)


def test_the_layer_is_that_of_32_blocks_by_depth() -> None:
    assert [_layer(None, num_blocks) for num_blocks in (32, 22, 4, 2)] == [7, 5, 1, 0]
    assert _layer(1, 2) == 1
    with pytest.raises(ValueError, match=r"^defence\.layer must be at most 1 for the 2 blocks"):
        _layer(2, 2)


def test_without_strength_and_ascent_refusals_alone_are_learned() -> None:
    module, safe = policy(), PAIRS.chosen
    term = step_of(rmu(strength=0.0, alpha=0.0), module, pairs=PAIRS)
    logits = module.policy(safe.input_ids, attention_mask=safe.attention_mask).logits
    torch.testing.assert_close(term.loss, cross_entropy(logits, safe))
    assert list(term.metrics) == ["train/loss"]


def test_it_asks_for_what_it_reads() -> None:
    assert rmu().needs == {Need.CONTRAST_BATCH}
    assert original().needs == {Need.CONTRAST_BATCH, Need.HARMLESS_BATCH}
