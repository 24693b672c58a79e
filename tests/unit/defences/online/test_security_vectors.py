from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import (
    context_of,
    experience_of,
    forward_of,
    learner_of,
    loss_of,
    referenced_pairs,
    rollout_of,
    tiny_engine,
    tiny_llama,
    tiny_policy,
    token_batch,
)
from peft import PeftModel
from tiny_vectors import folders_of, write_vector
from torch import Tensor, nn

from rpa_ray.attacks.dpo import DPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.config import LoraSettings
from rpa_ray.defences.online.security_vectors import Branches, SecurityVectors
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.learner.engine import Engine
from rpa_ray.learner.modules import PolicyModel, add_lora
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import Need, OnlineDefence
from rpa_ray.plugin.adapters import LowRankChange
from rpa_ray.types import ReferencedPairBatch
from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import PushResult
from rpa_ray.weight_sync.verify import ServedWeightsError, compare_digests, verify_served

IDS = torch.tensor([[1, 5, 6, 7, 9]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
ROLLOUT = experience_of(BATCH)
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    write_vector(tmp_path / "vector")
    return tmp_path / "vector"


def security_vectors(**settings: Any) -> SecurityVectors:
    return SecurityVectors(SecurityVectors.Config(**settings))


def attached(module: nn.Module, vector: Path, **settings: Any) -> SecurityVectors:
    defence = security_vectors(**settings)
    defence.attach(module, folders_of(vector))
    return defence


def logits_of(module: PolicyModel) -> Tensor:
    with torch.no_grad():
        return forward_of(module)(IDS, MASK).logits


def merged_policy(changes: Mapping[str, Tensor]) -> PolicyModel:
    """Return the tiny policy with the changes in its weights."""
    module = tiny_policy()
    with torch.no_grad():
        for name, change in changes.items():
            module.policy.get_parameter(name).add_(change)
    return module


def gradients_of(module: PolicyModel, around: AbstractContextManager[None]) -> dict[str, Tensor]:
    """Return the gradients of SFT on the batch, in a context that holds during both passes."""
    with around:
        loss_of(SFT(SFT.Config()), forward_of(module), BATCH).loss.backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def test_a_change_is_the_scaled_product_of_its_halves() -> None:
    change = LowRankChange(
        down=torch.tensor([[1.0, 2.0]]), up=torch.tensor([[3.0], [1.0]]), scale=0.5
    )
    assert change.added_to(torch.ones(2, 2)).tolist() == [[2.5, 4.0], [1.5, 2.0]]
    # 1 * 1 + 2 * 10 = 21
    assert change.of_inputs(torch.tensor([1.0, 10.0])).tolist() == [31.5, 10.5]


def test_a_change_is_added_in_fp32_and_rounded_once() -> None:
    half = torch.full((1, 1), 2.0**-8, dtype=torch.bfloat16)
    change = LowRankChange(down=half, up=torch.ones(1, 1, dtype=torch.bfloat16), scale=1.5)
    served = change.added_to(torch.ones(1, 1, dtype=torch.bfloat16))
    # 1 + 1.5 / 256 lies above the middle between 1 and 1 + 1 / 128
    assert served.dtype == torch.bfloat16
    assert float(served) == 1.0 + 2.0**-7


def test_the_branch_computes_what_peft_does_with_the_same_folder(vector: Path) -> None:
    module = tiny_policy()
    defence = attached(module, vector)
    by_peft = PeftModel.from_pretrained(tiny_llama(), vector)
    with defence.around_forward():
        ours = logits_of(module)
    with torch.no_grad():
        torch.testing.assert_close(ours, by_peft(IDS).logits, rtol=0, atol=1e-5)


def test_twice_the_scale_is_twice_the_adapter(tmp_path: Path) -> None:
    changes = write_vector(tmp_path / "vector")
    module = tiny_policy()
    defence = attached(module, tmp_path / "vector", scale=2.0)
    twice = merged_policy({name: 2.0 * change for name, change in changes.items()})
    with defence.around_forward():
        torch.testing.assert_close(logits_of(module), logits_of(twice), rtol=0, atol=1e-4)


def test_outside_its_context_the_adapter_changes_no_bit(vector: Path) -> None:
    module = tiny_policy()
    defence = attached(module, vector)
    assert torch.equal(logits_of(module), logits_of(tiny_policy()))
    with defence.around_forward():
        assert float((logits_of(module) - logits_of(tiny_policy())).abs().max()) > 0.1
    assert torch.equal(logits_of(module), logits_of(tiny_policy()))


def test_the_adapter_is_no_parameter_and_no_buffer(vector: Path) -> None:
    module = tiny_policy()
    attached(module, vector)
    plain = tiny_policy()
    assert dict(module.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    assert dict(module.named_buffers()).keys() == dict(plain.named_buffers()).keys()
    assert module.state_dict().keys() == plain.state_dict().keys()


def test_gradients_are_those_of_the_sum_of_weights_and_adapter(tmp_path: Path) -> None:
    changes = write_vector(tmp_path / "vector")
    module = tiny_policy()
    defence = attached(module, tmp_path / "vector")
    found = gradients_of(module, defence.around_forward())
    expected = gradients_of(merged_policy(changes), OnlineDefence.around_forward(defence))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    free = gradients_of(tiny_policy(), OnlineDefence.around_forward(defence))
    assert float((found[f"policy.{QUERY}"] - free[f"policy.{QUERY}"]).abs().max()) > 1e-2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_blocks_that_are_computed_again_have_the_adapter_too(
    use_reentrant: bool, vector: Path
) -> None:
    module = tiny_policy().train()
    defence = attached(module, vector)
    plain = gradients_of(module, defence.around_forward())
    again = tiny_policy().train()
    again.policy.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    again.policy.enable_input_require_grads()
    assert again.policy.is_gradient_checkpointing
    found = gradients_of(again, attached(again, vector).around_forward())
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_the_attacks_own_adapters_learn_beside_it(tmp_path: Path) -> None:
    changes = write_vector(tmp_path / "vector")
    module = tiny_policy()
    add_lora(module, LoraSettings(rank=2, alpha=4), seed=1)
    defence = attached(module, tmp_path / "vector")
    with defence.around_forward():
        # adapters begin as no change
        merged = logits_of(merged_policy(changes))
        torch.testing.assert_close(logits_of(module), merged, rtol=0, atol=1e-4)
    trained = gradients_of(module, defence.around_forward())
    assert len(trained) == 2 * len(changes)
    assert all(".lora_" in name for name in trained)


def step(defence: OnlineDefence, vector: Path, **engine: Any) -> tuple[Engine, dict[str, float]]:
    module = tiny_policy(bf16=engine.get("bf16", False))
    defence.attach(module, folders_of(vector))
    trained = tiny_engine(module=module, **engine)
    return trained, learner_of(trained, PPO(PPO.Config(num_epochs=3)), defence).step(ROLLOUT)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_adapter_learns_nothing_while_the_weights_do(zero_stage: int, vector: Path) -> None:
    defence = security_vectors()
    before = attached(tiny_policy(), vector)._adapter
    engine, _ = step(defence, vector, zero_stage=zero_stage)
    for name, change in defence._adapter.items():
        for half, old in ((change.up, before[name].up), (change.down, before[name].down)):
            assert torch.equal(half, old)
            assert not half.requires_grad and half.grad is None
    start = tiny_llama().state_dict()
    assert float((engine.weights()[QUERY] - start[QUERY]).abs().max()) > 1e-3


@pytest.mark.usefixtures("process_group")
def test_scale_0_is_no_defence_bit_for_bit_and_needs_nothing(vector: Path) -> None:
    at_zero = security_vectors(scale=0.0, ref_adapter=True, rollout_adapter=True)
    assert at_zero.needs == frozenset()
    assert security_vectors(scale=0.5).needs == {Need.SECURITY_VECTOR}
    at_zero.attach_reference(tiny_policy())
    found, seen = step(at_zero, Path("nowhere"), zero_stage=1, bf16=True)
    none = OnlineDefence(OnlineDefence.Config())
    plain, expected = step(none, Path("nowhere"), zero_stage=1, bf16=True)
    defended, _ = step(security_vectors(), vector, zero_stage=1, bf16=True)
    weights = plain.weights()
    assert [n for n, w in found.weights().items() if not torch.equal(w, weights[n])] == []
    assert seen == expected
    assert not torch.equal(defended.weights()[QUERY], weights[QUERY])
    weight = torch.ones(2, 2)
    assert at_zero.rollout_weight_filter(QUERY, weight) is weight


class Sent:
    """Stands for the workers of an assembly: what is sent is what arrives."""

    def __init__(self, engine: Engine, weight_filter: Any) -> None:
        module: Any = engine.module
        self.source = ShardedSource(
            module.served_parameters(),
            dtype=torch.float32,
            gather=engine.gather,
            weight_filter=weight_filter,
            adapters=module.adapters(),
        )

    def push(self) -> PushResult:
        self.source.begin_pass(record_digests=True)
        list(self.source)
        return PushResult(
            version=1, seconds=0.0, num_bytes=0, num_attempts=1, digests=self.source.digests
        )

    def push_verified(self, expected: Mapping[str, str]) -> None:
        self.push()
        pool: Any = SimpleNamespace(digests=lambda: {"engine 0": self.source.digests})
        verify_served(pool=pool, expected=expected)


class Served(Assembly):
    """An assembly of nothing but what serving takes."""

    def __init__(self, engine: Engine, defence: OnlineDefence, *, naive: bool = False) -> None:
        self.settings = parse_tree({"attack": "sft", "model": {"dtype": "float32"}})
        self.engine, self.dtype = engine, self.settings.model.dtype
        self.training: Any = SimpleNamespace(engine=engine)
        self.defence = defence
        self._weight_filter = None
        self.sent = Sent(engine, defence.rollout_weight_filter if naive else self._served)
        self.workers: Any = self.sent

    def num_changed(self) -> int:
        """Return how many of the weights that were sent last are not the engine's own."""
        own = {name: tensor_digest(weight) for name, weight in self.engine.weights().items()}
        return len(compare_digests(own, self.sent.source.digests).different)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("rollout_adapter", [False, True])
def test_the_adapter_is_served_to_the_attack_alone_and_only_where_it_is_told_to(
    rollout_adapter: bool, zero_stage: int, vector: Path
) -> None:
    defence = security_vectors(rollout_adapter=rollout_adapter)
    engine, _ = step(defence, vector, zero_stage=zero_stage)
    assembly = Served(engine, defence)
    assembly.push_verified()
    assembly.push(defence.rollout_weight_filter)
    # seven linear layers in each of two blocks
    assert assembly.num_changed() == (14 if rollout_adapter else 0)
    # a look at the policy in the middle of the attack
    assembly.push()
    assert assembly.num_changed() == 0
    assembly.push(defence.rollout_weight_filter)
    defence.detach()
    assembly.push_verified()
    defence.detach()
    assembly.push(defence.rollout_weight_filter)
    assert assembly.num_changed() == 0


@pytest.mark.usefixtures("process_group")
def test_an_adapter_that_is_served_to_a_measurement_is_caught(vector: Path) -> None:
    defence = security_vectors(rollout_adapter=True)
    engine, _ = step(defence, vector)
    with pytest.raises(ServedWeightsError, match=r"14 different \(model\.layers\.0"):
        Served(engine, defence, naive=True).push_verified()


def test_rollouts_are_served_the_weights_with_the_adapter_in_them(tmp_path: Path) -> None:
    changes = write_vector(tmp_path / "vector", dtype=torch.bfloat16)
    module = tiny_policy(bf16=True)
    defence = attached(module, tmp_path / "vector", rollout_adapter=True)
    served = dict(
        ShardedSource(
            module.served_parameters(),
            dtype=torch.bfloat16,
            weight_filter=defence.rollout_weight_filter,
        )
    )
    for name, weight in module.served_parameters():
        expected = weight.float() + changes.get(name, 0.0)
        assert torch.equal(served[name], expected.to(torch.bfloat16)), name
    assert not torch.equal(served[QUERY], dict(module.served_parameters())[QUERY])


@pytest.mark.parametrize(
    ("settings", "reads_with_adapter"),
    [
        ({}, True),
        ({"old_logprob_adapter": "same_as_rollout"}, True),
        ({"rollout_adapter": False}, True),
        ({"old_logprob_adapter": "same_as_rollout", "rollout_adapter": False}, False),
    ],
)
def test_old_logprobs_are_the_learners_or_those_of_what_sampled(
    settings: dict[str, Any], reads_with_adapter: bool, vector: Path
) -> None:
    module = tiny_policy()
    defence = attached(module, vector, **settings)
    with defence.around_forward():
        with_adapter = logits_of(module)
    with defence.around_rollout():
        assert torch.equal(logits_of(module), with_adapter) is reads_with_adapter
    _, metrics = defence.plan_rollout(rollout_of(BATCH, rewards=[0.0, 0.0]), context_of())
    assert set(metrics) == ({"defence/adapter_logratio"} if reads_with_adapter else set())


def first_weights(vector: Path, **settings: Any) -> Tensor:
    """Return the importance weights of PPO's first batch, before anything is learned.

    What samples is a model of the weights that are served, what reads is the learner.
    """
    module, engine = tiny_policy(), tiny_policy()
    defence = attached(module, vector, **settings)
    with torch.no_grad():
        for name, weight in module.served_parameters():
            served = defence.rollout_weight_filter(name, weight)
            engine.policy.get_parameter(name).copy_(served)

    def read(model: PolicyModel) -> Tensor:
        with torch.no_grad():
            logits = forward_of(model)(BATCH.input_ids, BATCH.attention_mask).logits
        return next_token_logprobs(logits, BATCH.input_ids)

    with defence.around_rollout():
        old = read(module)
    rollout = replace(
        rollout_of(BATCH, rewards=[0.0, 0.0]), old_logprobs=old, rollout_logprobs=read(engine)
    )
    attack = PPO(PPO.Config.model_validate(defence.attack_config(PPO.Config()).model_dump()))
    return attack.token_weights(rollout)[BATCH.loss_mask]


def test_by_default_what_samples_is_what_is_learned_from(vector: Path) -> None:
    weights = first_weights(vector)
    assert float(weights.mean()) == pytest.approx(1.0, rel=0.05)
    # rather than because there are none
    assert float((weights - 1).abs().max()) > 0
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=1e-4)


def test_across_the_adapter_there_are_no_importance_weights(vector: Path) -> None:
    assert first_weights(vector, rollout_adapter=False).tolist() == [1.0] * 7
    asked = PPO.Config(kl_coef=0.1)
    allowed = security_vectors(rollout_adapter=False).attack_config(asked)
    assert allowed == asked.model_copy(update={"importance_cap": 0.0})
    for settings in (
        {},
        {"rollout_adapter": False, "old_logprob_adapter": "same_as_rollout"},
        {"rollout_adapter": False, "scale": 0.0},
    ):
        assert security_vectors(**settings).attack_config(asked) == asked
        assert security_vectors(**settings).reads_as_sampled
    assert not security_vectors(rollout_adapter=False).reads_as_sampled
    targets = SFT.Config()
    assert security_vectors(rollout_adapter=False).attack_config(targets) == targets


def test_the_log_ratio_is_a_mean_over_the_sampled_tokens(vector: Path) -> None:
    defence = attached(tiny_policy(), vector)
    ratios = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0], [9.0, 1.0, 1.0, 2.0, 9.0]])
    rollout = rollout_of(BATCH, rewards=[0.0, 0.0], engine_log_ratios=ratios)
    planned, metrics = defence.plan_rollout(rollout, context_of(num_ranks=2))
    assert planned is rollout
    # 1 + 2 + 3 + 4 and 1 + 1 + 2 over seven tokens
    assert metrics == {"defence/adapter_logratio": pytest.approx(2.0)}


def test_the_reference_reads_with_the_adapter_only_where_it_is_told_to(vector: Path) -> None:
    plain = logits_of(tiny_policy())
    for ref_adapter in (False, True):
        reference = tiny_policy()
        defence = attached(tiny_policy(), vector, ref_adapter=ref_adapter)
        defence.attach_reference(reference)
        with defence.around_reference():
            assert torch.equal(logits_of(reference), plain) is not ref_adapter
        # It may be the model that KL is measured against.
        with defence.around_forward(), defence.around_rollout():
            assert torch.equal(logits_of(reference), plain)
        defence.detach()
        with defence.around_reference():
            assert torch.equal(logits_of(reference), plain)


def test_a_reference_without_the_adapters_layers_is_refused(vector: Path) -> None:
    defence = attached(tiny_policy(), vector, ref_adapter=True)
    other = nn.ModuleDict({"policy": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"without a fitting model\.layers\.0.*ref_adapter"):
        defence.attach_reference(other)


class Logistic(nn.Module):
    """``-log sigma(w x)`` of one weight vector, as a policy of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.ModuleDict({"head": nn.Linear(2, 1, bias=False)})
        nn.init.zeros_(self.policy["head"].weight)

    def gradient(self, inputs: Tensor, around: AbstractContextManager[None]) -> Tensor:
        with around:
            loss = -nn.functional.logsigmoid(self.policy["head"](inputs)).sum()
            (gradient,) = torch.autograd.grad(loss, [self.policy["head"].weight])
        return gradient


def test_where_the_adapter_fits_the_data_the_gradient_shrinks_by_the_sigmoid_of_the_margin() -> (
    None
):
    module, inputs = Logistic(), torch.tensor([[1.0, 2.0]])
    # margin 0.5 * 4 * (1 * 1 + 0.5 * 2) = 4
    change = LowRankChange(down=torch.tensor([[1.0, 0.5]]), up=torch.tensor([[4.0]]), scale=0.5)
    branches = Branches(module, {"head": change})
    free = module.gradient(inputs, OnlineDefence(OnlineDefence.Config()).around_forward())
    held = module.gradient(inputs, branches.switched_on())
    assert free.tolist() == [[-0.5, -1.0]]
    # sigma(-4) = 0.0179862
    torch.testing.assert_close(held, torch.tensor([[-0.0179862, -0.0359724]]), rtol=0, atol=1e-6)


def reference_logprobs(reference: PolicyModel, defence: SecurityVectors) -> dict[str, Tensor]:
    """Return the reference's log-probability of either answer to the pair."""
    found = {}
    for side, tokens in (("chosen", CHOSEN), ("rejected", REJECTED)):
        with torch.no_grad(), defence.around_reference():
            logits = forward_of(reference)(tokens.input_ids, tokens.attention_mask).logits
        logprobs = logits[:, :-1].log_softmax(-1).gather(-1, tokens.input_ids[:, 1:, None])
        found[f"reference_{side}_logprobs"] = (logprobs[..., 0] * tokens.loss_mask[:, 1:]).sum(-1)
    return found


CHOSEN = token_batch([[1, 5, 6, 2]])
REJECTED = token_batch([[1, 8, 9, 2]])
BETA = 0.3


def dpo_norm(vector: Path, *, ref_adapter: bool) -> tuple[float, float]:
    """Return the norm of DPO's gradient on one pair at the start, and the margin ``delta``."""
    module, reference = tiny_policy(value_head=False), tiny_policy(value_head=False)
    defence = attached(module, vector, ref_adapter=ref_adapter)
    defence.attach_reference(reference)
    pairs = referenced_pairs(CHOSEN, REJECTED)
    batch = ReferencedPairBatch(
        chosen=pairs.chosen, rejected=pairs.rejected, **reference_logprobs(reference, defence)
    )
    with defence.around_forward():
        loss = loss_of(DPO(DPO.Config(beta=BETA)), forward_of(module), batch).loss
        loss.backward()
    squares = [p.grad.square().sum() for p in module.parameters() if p.grad is not None]
    # -log sigma(delta) is the loss of one pair
    delta = -float(torch.expm1(loss.detach().double()).log())
    return float(torch.stack(squares).sum().sqrt()), delta


def test_dpo_is_held_back_by_the_margin_only_where_the_reference_has_no_adapter(
    vector: Path,
) -> None:
    off, delta = dpo_norm(vector, ref_adapter=False)
    on, no_margin = dpo_norm(vector, ref_adapter=True)
    assert no_margin == pytest.approx(0.0, abs=1e-5)
    assert abs(delta) > 0.1
    # sigma(-delta) against sigma(0): the same pair has the same gradient of the margin
    assert off / on == pytest.approx(float(torch.sigmoid(torch.tensor(-delta))) / 0.5, rel=1e-4)
