import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import (
    VOCAB_SIZE,
    context_of,
    experience_of,
    forward_of,
    learner_of,
    loss_of,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    PreTrainedConfig,
)

from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.defences.blocks import ATTENTION_NAMES, modules_of_blocks
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.defences.online.vaccine import Vaccine, perturbation_of_norm, perturbation_of_token_rms
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plugin import Objective, OnlineDefence
from rpa_ray.types import LossTerm, ModelOutputs

pytestmark = pytest.mark.usefixtures("process_group")

TOKENS = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 10, 2]])
PADDED = token_batch([[1, 5, 6, 7, 2], [1, 8, 2]])
# As wide as the attack's rows, so that a perturbation of theirs would fit here too.
REFUSALS = token_batch([[1, 13, 14, 15, 2], [1, 16, 17, 18, 2]], num_prompt_tokens=2)
ATTACK_BATCHES = [experience_of(TOKENS, seed=seed) for seed in range(2)]


def vaccine(rho: float, **settings: Any) -> Vaccine:
    return Vaccine(Vaccine.Config(rho=rho, **settings))


class Attention(nn.Module):
    """An attention module that returns its input, and its weights beside it."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        return hidden.clone(), "weights"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()

    def forward(self, hidden: Tensor) -> Tensor:
        out, weights = self.self_attn(hidden)
        assert weights == "weights"
        return out


class Chain(nn.Module):
    """Blocks that change nothing: the logits of each token are its two embeddings, plus all e."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, None]:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden, None


class Sum(Objective[Any, ModelOutputs]):
    """The sum over tokens of ``slope . logits + curvature / 2 |logits|^2``."""

    def __init__(self, slope: tuple[float, float], curvature: float = 0.0) -> None:
        self.slope = torch.tensor(slope)
        self.curvature = curvature
        self.seen: list[Tensor] = []

    def num_terms(self, batch: Any) -> Tensor:
        return torch.tensor(1)

    def loss(self, forward: Any, batch: Any, context: Any) -> LossTerm:
        logits = forward(batch.input_ids, batch.attention_mask).logits
        self.seen.append(logits.detach())
        loss = (logits * self.slope).sum() + self.curvature / 2 * logits.square().sum()
        return LossTerm(loss=loss, metrics={"train/loss": float(loss.detach())})


def perturbed_loss(
    model: nn.Module, objective: Any, defence: Vaccine, batch: Any, *, num_ranks: int = 1
) -> LossTerm:
    """Return the loss of one micro-batch on a plain model that the defence is attached to."""
    planned, batch = defence.plan_step(objective, batch, context_of())
    forward = forward_of(model)  # type: ignore[arg-type]
    with defence.around_forward():
        return loss_of(planned, forward, batch, num_ranks=num_ranks)


def sft() -> SFT:
    return SFT(SFT.Config())


def attacked(defence: OnlineDefence | None) -> dict[str, Tensor]:
    """Return the weights after 8 updates of a PPO attack under ZeRO 1 in bf16."""
    module = tiny_policy(bf16=True)
    if defence is not None:
        defence.attach(module, {})
    engine = tiny_engine(module=module, zero_stage=1, bf16=True)
    learner = learner_of(engine, PPO(PPO.Config()), defence)
    for batch in ATTACK_BATCHES:
        learner.step(batch)
    assert engine.num_updates == 8
    return engine.weights()


def stepped(
    defence: OnlineDefence,
    batch: Any = TOKENS,
    *,
    zero_stage: int = 0,
    micro_batch_size: int = 64,
    checkpointing: bool = False,
) -> tuple[dict[str, Tensor], Any]:
    """Return weights and metrics after one step of SFT that is nearly proportional to its gradient.

    Adam with eps 1 moves a weight by minus the rate times ``g / (|g| + 1)`` at first.
    """
    module = tiny_policy(value_head=False).train()
    if checkpointing:
        module.policy.gradient_checkpointing_enable({"use_reentrant": False})
    defence.attach(module, {})
    engine = tiny_engine(
        module=module,
        zero_stage=zero_stage,
        micro_batch_size=micro_batch_size,
        optimizer=OptimizerSettings(learning_rate=1.0, num_steps=1, eps=1.0),
    )
    metrics = learner_of(engine, sft(), defence, safe_batch=REFUSALS).step(batch)
    return engine.weights(), metrics


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-6) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=atol)


def differ(one: dict[str, Tensor], other: dict[str, Tensor], by: float) -> bool:
    return any(float((one[name] - other[name]).abs().max()) > by for name in one)


def test_one_norm_spans_all_layers() -> None:
    # |(3, 4)|^2 + |(0, 12)|^2 = 13^2
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 12.0])]
    first, second = perturbation_of_norm(2.0, gradients, 13.0)
    torch.testing.assert_close(first, torch.tensor([0.461538, 0.615385]), rtol=0, atol=1e-6)
    torch.testing.assert_close(second, torch.tensor([0.0, 1.846154]), rtol=0, atol=1e-6)


def test_a_budget_per_token_gives_every_token_the_same_rms() -> None:
    # norms 5 and 0.13 become 0.5 sqrt(2), an RMS of 0.5 over two channels; padding stays 0
    gradients = [torch.tensor([[[3.0, 4.0], [0.05, -0.12], [0.0, 0.0]]])]
    (found,) = perturbation_of_token_rms(0.5, gradients)
    root = math.sqrt(2)
    expected = [[[0.3 * root, 0.4 * root], [0.5 * root * 5 / 13, -0.5 * root * 12 / 13], [0, 0]]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_on_a_linear_loss_the_perturbation_is_along_the_slope() -> None:
    model, objective, defence = Chain(1), Sum((3.0, 4.0)), vaccine(2.0)
    defence.attach(model, {})
    batch = token_batch([[1]])
    term = perturbed_loss(model, objective, defence, batch)
    before, after = objective.seen
    # 2 * (3, 4) / 5, which raises the loss by rho |slope| = 10
    torch.testing.assert_close((after - before)[0, 0], torch.tensor([1.2, 1.6]))
    rise = term.metrics["defence/vaccine_loss_after"] - term.metrics["defence/vaccine_loss_before"]
    assert rise == pytest.approx(10.0, rel=1e-5)
    assert term.metrics["train/loss"] == term.metrics["defence/vaccine_loss_after"]
    assert term.metrics["defence/vaccine_norm"] == pytest.approx(5.0)


def test_blocks_and_tokens_share_the_norm() -> None:
    model, objective, defence = Chain(2), Sum((3.0, 4.0)), vaccine(2.0)
    defence.attach(model, {})
    term = perturbed_loss(model, objective, defence, token_batch([[1, 2], [3, 1]]))
    # 2 blocks x 2 rows x 2 tokens of gradient (3, 4): norm 5 sqrt(8), 16 elements
    assert term.metrics["defence/vaccine_norm"] == pytest.approx(5 * math.sqrt(8))
    assert term.metrics["defence/vaccine_num_elements"] == 16
    assert term.metrics["defence/vaccine_rms"] == pytest.approx(2.0 / 4.0)
    before, after = objective.seen
    # both blocks add 2 (3, 4) / (5 sqrt(8)) to every token
    expected = torch.tensor([2.4, 3.2]) / math.sqrt(8)
    torch.testing.assert_close(after - before, expected.expand(2, 2, 2))


def test_no_other_direction_raises_a_curved_loss_as_much() -> None:
    model, objective, defence = Chain(1), Sum((0.5, -0.5), curvature=1.0), vaccine(0.1)
    defence.attach(model, {})
    batch = token_batch([[1, 2, 3]])
    term = perturbed_loss(model, objective, defence, batch)
    before = objective.seen[0]
    raised = (
        term.metrics["defence/vaccine_loss_after"] - term.metrics["defence/vaccine_loss_before"]
    )
    assert raised > 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(before.shape, generator=generator)
        logits = before + 0.1 * other / other.norm()
        loss = (logits * objective.slope).sum() + 0.5 * logits.square().sum()
        assert float(loss) - term.metrics["defence/vaccine_loss_before"] < raised


def test_of_a_language_model_the_loss_rises_by_rho_times_the_norm() -> None:
    model, defence = tiny_policy(), vaccine(0.01)
    defence.attach(model, {})
    metrics = perturbed_loss(model, sft(), defence, PADDED).metrics
    rise = metrics["defence/vaccine_loss_after"] - metrics["defence/vaccine_loss_before"]
    assert metrics["defence/vaccine_norm"] > 0.1
    assert rise == pytest.approx(0.01 * metrics["defence/vaccine_norm"], rel=0.02)
    # 2 layers x 2 rows x 5 tokens x 32 channels
    assert metrics["defence/vaccine_num_elements"] == 640
    size = metrics["defence/vaccine_rms"] * math.sqrt(640)
    assert size == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_learner_takes_the_step_of_plain_pytorch(zero_stage: int) -> None:
    found, _ = stepped(vaccine(2.0), zero_stage=zero_stage)
    assert_close(found, by_hand(2.0))
    assert differ(found, by_hand(0.0), by=1e-3)


def by_hand(rho: float) -> dict[str, Tensor]:
    """Return the weights after the same step, of attention outputs that keep their gradient."""
    model = tiny_policy(value_head=False)
    outputs: list[Tensor] = []
    changes: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] + changes[len(outputs)] if changes else output[0]
        hidden.retain_grad()
        outputs.append(hidden)
        return (hidden, *output[1:])

    for layer in model.policy.model.layers:
        layer.self_attn.register_forward_hook(hook)
    loss_of(sft(), forward_of(model), TOKENS).loss.backward()
    gradients = [output.grad for output in outputs]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    changes = [rho * g / (norm + 1e-7) for g in gradients]
    outputs.clear()
    model.zero_grad()
    loss_of(sft(), forward_of(model), TOKENS).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad / (parameter.grad.abs() + 1.0)
    return {name: p.detach() for name, p in model.served_parameters()}


def test_every_micro_batch_has_a_perturbation_of_its_own() -> None:
    defence = vaccine(2.0)
    both, metrics = stepped(defence, micro_batch_size=1)
    assert metrics["defence/vaccine_num_perturbations"] == 2
    # means over the update, not sums over its micro-batches
    assert metrics["defence/vaccine_num_elements"] == 320
    assert metrics["defence/vaccine_rms"] == pytest.approx(2.0 / math.sqrt(320), rel=1e-5)
    whole, metrics = stepped(defence)
    assert metrics["defence/vaccine_num_perturbations"] == 1
    assert metrics["defence/vaccine_rms"] == pytest.approx(2.0 / math.sqrt(640), rel=1e-5)
    assert differ(both, whole, by=1e-4)
    # Two rows of equally many tokens: the gradient is the mean of those of each row alone.
    before = dict(tiny_policy().served_parameters())
    rows = [stepped(defence, token_batch([row]))[0] for row in TOKENS.input_ids.tolist()]
    for name, weight in both.items():
        halves = [gradient_of(before[name], row[name]) / 2 for row in rows]
        found = gradient_of(before[name], weight)
        torch.testing.assert_close(found, halves[0] + halves[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("budget", ["total", "per_token"])
@pytest.mark.parametrize("batch", [TOKENS, PADDED], ids=["equal", "padded"])
def test_with_a_global_norm_micro_batches_make_the_step_of_the_whole_batch(
    batch: Any, budget: str
) -> None:
    whole, expected = stepped(vaccine(2.0, norm="global", budget=budget), batch)
    parts, metrics = stepped(vaccine(2.0, norm="global", budget=budget), batch, micro_batch_size=1)
    assert_close(parts, whole, atol=1e-5)
    assert metrics == pytest.approx(expected, rel=1e-4)
    if budget == "total":
        assert metrics["defence/vaccine_rms"] == pytest.approx(2.0 / math.sqrt(640), rel=1e-5)
    assert differ(whole, stepped(vaccine(0.0), batch)[0], by=1e-3)


def test_with_a_global_norm_ranks_have_the_perturbation_of_one_that_holds_all_rows() -> None:
    def seen(rows: list[list[int]], *, num_ranks: int) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(0)
        model, objective, defence = Chain(2), Sum((3.0, 4.0)), vaccine(2.0, norm="global")
        defence.attach(model, {})
        # as with a mean over the rows of all ranks, each rank's loss is num_ranks times its part
        objective.slope *= num_ranks
        term = perturbed_loss(model, objective, defence, token_batch(rows), num_ranks=num_ranks)
        before, after = objective.seen
        return (after - before)[0], term.metrics

    one, expected = seen([[1, 2]] * 8, num_ranks=1)
    many, metrics = seen([[1, 2]], num_ranks=8)
    torch.testing.assert_close(many, one)
    for name in ("norm", "rms", "relative_rms", "num_elements", "num_perturbations"):
        key = f"defence/vaccine_{name}"
        assert metrics[key] == pytest.approx(expected[key], rel=1e-5), name


def test_the_relative_size_is_that_of_the_perturbation_by_the_attention_outputs() -> None:
    model, objective, defence = Chain(1), Sum((3.0, 4.0)), vaccine(2.0)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 1.0], [5.0, 1.0], [0, 0]]))
    defence.attach(model, {})
    metrics = perturbed_loss(model, objective, defence, token_batch([[1, 2]])).metrics
    # four elements: |e|^2 = 4, and outputs of squares 9 + 1 + 25 + 1 = 36
    assert metrics["defence/vaccine_rms"] == pytest.approx(1.0)
    assert metrics["defence/vaccine_relative_rms"] == pytest.approx(1.0 / 3.0)


def gradient_of(before: Tensor, after: Tensor) -> Tensor:
    """Return the gradient of a step of ``-g / (|g| + 1)``."""
    step = before.detach() - after
    return step / (1 - step.abs())


def test_a_budget_per_token_does_not_depend_on_micro_batches() -> None:
    whole, _ = stepped(vaccine(0.1, budget="per_token"), PADDED)
    parts, metrics = stepped(vaccine(0.1, budget="per_token"), PADDED, micro_batch_size=1)
    assert metrics["defence/vaccine_num_perturbations"] == 2
    assert_close(parts, whole)
    assert differ(whole, stepped(vaccine(0.0), PADDED)[0], by=1e-3)


def test_checkpointed_blocks_are_perturbed_alike_when_they_are_computed_again() -> None:
    plain, _ = stepped(vaccine(2.0))
    checkpointed, _ = stepped(vaccine(2.0), checkpointing=True)
    assert_close(checkpointed, plain)
    # unperturbed, the second time would give another step
    assert differ(checkpointed, stepped(vaccine(0.0), checkpointing=True)[0], by=1e-3)


class VaccineAndRefusals(Vaccine):
    """Has a loss beside the attack's, whose forward pass comes before the one backward of both."""

    def extra_loss(self, forward: Any, context: Any) -> LossTerm:
        return RefusalLoss(RefusalLoss.Config(alpha=3.0)).extra_loss(forward, context)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_of_another_defence_is_not_perturbed(checkpointing: bool) -> None:
    both, metrics = stepped(
        VaccineAndRefusals(Vaccine.Config(rho=2.0)), checkpointing=checkpointing
    )
    alone, _ = stepped(vaccine(2.0))
    refusals, untouched = stepped(RefusalLoss(RefusalLoss.Config(alpha=3.0)))
    attack, _ = stepped(OnlineDefence(OnlineDefence.Config()))
    assert metrics["defence/refusal_loss"] == untouched["defence/refusal_loss"]
    before = dict(tiny_policy().served_parameters())
    for name in both:
        own, plain, with_refusals, found = (
            gradient_of(before[name], weights[name]) for weights in (alone, attack, refusals, both)
        )
        torch.testing.assert_close(found, own + with_refusals - plain, rtol=1e-3, atol=1e-4)


def test_reentrant_checkpointing_fails_and_leaves_nothing_behind() -> None:
    module = tiny_policy(value_head=False).train()
    module.policy.gradient_checkpointing_enable({"use_reentrant": True})
    defence = vaccine(2.0)
    defence.attach(module, {})
    learner = learner_of(tiny_engine(module=module), sft(), defence)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        learner.step(TOKENS)
    assert_untouched(module)


@contextmanager
def broken_attention(module: PolicyModel) -> Iterator[None]:
    """Raise in the second block."""

    def fail(*_: Any) -> None:
        raise ArithmeticError

    handle = module.policy.model.layers[1].mlp.register_forward_hook(fail)
    yield
    handle.remove()


class FailsInTheSecondPass(SFT):
    num_calls = 0

    def loss(self, forward: Any, batch: Any, context: Any) -> LossTerm:
        term = super().loss(forward, batch, context)
        self.num_calls += 1
        if self.num_calls == 2:
            raise ArithmeticError
        return term


def test_after_an_error_in_either_pass_the_model_is_untouched() -> None:
    defence, module = vaccine(2.0), tiny_policy(value_head=False)
    defence.attach(module, {})
    engine = tiny_engine(module=module)
    with broken_attention(module), pytest.raises(ArithmeticError):
        learner_of(engine, sft(), defence).step(TOKENS)
    assert_untouched(module)
    with pytest.raises(ArithmeticError):
        learner_of(engine, FailsInTheSecondPass(SFT.Config()), defence).step(TOKENS)
    assert_untouched(module)
    # and the step that follows is the ordinary one
    learner_of(engine, sft(), defence).step(TOKENS)
    other = vaccine(2.0)
    module = tiny_policy(value_head=False)
    other.attach(module, {})
    expected = tiny_engine(module=module)
    learner_of(expected, sft(), other).step(TOKENS)
    assert_close(engine.weights(), expected.weights(), atol=0)


def test_between_steps_the_model_is_untouched() -> None:
    defence, module = vaccine(2.0), tiny_policy(value_head=False)
    defence.attach(module, {})
    engine = tiny_engine(module=module)
    learner = learner_of(engine, sft(), defence)
    learner.step(TOKENS)
    plain = tiny_policy(value_head=False)
    plain.load_state_dict(module.state_dict())
    assert_same_outputs(learner.forward, plain)
    # hooks that hold no tensor of the step
    outputs: Any = defence._outputs
    assert (outputs._added, outputs._block_input, outputs._source) == ({}, None, None)


def assert_untouched(module: PolicyModel) -> None:
    assert_same_outputs(forward_of(module), tiny_policy(value_head=False))
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def assert_same_outputs(forward: Any, plain: PolicyModel) -> None:
    expected = forward_of(plain)(TOKENS.input_ids, TOKENS.attention_mask).logits
    assert torch.equal(forward(TOKENS.input_ids, TOKENS.attention_mask).logits, expected)


def test_the_first_pass_leaves_no_gradient_on_the_parameters() -> None:
    model, defence = tiny_policy(), vaccine(2.0)
    defence.attach(model, {})
    perturbed_loss(model, sft(), defence, TOKENS)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []


def test_ranks_that_share_a_norm_share_the_budget() -> None:
    # Two ranks with the same rows: one perturbation of norm rho, so rho / sqrt(2) on each.
    def sizes(norm: str, num_ranks: int) -> tuple[float, dict[str, float]]:
        torch.manual_seed(0)
        model, objective, defence = Chain(1), Sum((3.0, 4.0)), vaccine(2.0, norm=norm)
        defence.attach(model, {})
        term = perturbed_loss(model, objective, defence, token_batch([[1]]), num_ranks=num_ranks)
        before, after = objective.seen
        return float((after - before).norm()), term.metrics

    size, shared = sizes("global", 2)
    assert size == pytest.approx(2.0 / math.sqrt(2))
    assert shared["defence/vaccine_num_perturbations"] == 1
    assert shared["defence/vaccine_num_elements"] == 4
    assert shared["defence/vaccine_rms"] == pytest.approx(2.0 / math.sqrt(4))
    # each rank's loss is a half of the step's: 5 / 2 on both
    assert shared["defence/vaccine_norm"] == pytest.approx(5 * math.sqrt(2) / 2)
    size, own = sizes("local", 2)
    assert size == pytest.approx(2.0)
    assert own["defence/vaccine_num_perturbations"] == 2
    assert own["defence/vaccine_norm"] == pytest.approx(5 / 2)
    assert sizes("global", 1) == sizes("local", 1)


def ppo_metrics(rho: float) -> Any:
    """Return the metrics of a first update on rollouts of the model as it is."""
    module, defence = tiny_policy(), vaccine(rho)
    outputs = forward_of(module)(TOKENS.input_ids, TOKENS.attention_mask)
    old = next_token_logprobs(outputs.logits, TOKENS.input_ids).detach()
    batch = replace(experience_of(TOKENS), old_logprobs=old)
    defence.attach(module, {})
    return learner_of(tiny_engine(module=module), PPO(PPO.Config(num_epochs=1)), defence).step(
        batch
    )


def test_in_ppo_the_old_policy_is_the_unperturbed_one() -> None:
    undefended, defended = ppo_metrics(0.0), ppo_metrics(100.0)
    assert undefended["policy/ratio"] == pytest.approx(1.0, rel=1e-6)
    assert abs(defended["policy/ratio"] - 1.0) > 0.5


MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=VOCAB_SIZE),
    "gpt_neo": lambda: GPTNeoConfig(
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        hidden_size=16,
        num_heads=2,
        intermediate_size=16,
        vocab_size=VOCAB_SIZE,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=VOCAB_SIZE,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_attention_modules_of_other_decoders_are_found(name: str) -> None:
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(MODELS[name]()).eval()
    assert len(modules_of_blocks(policy, ATTENTION_NAMES)) == 2
    model, defence = PolicyModel(policy, value_head_seed=None), vaccine(0.01)
    defence.attach(model, {})
    metrics = perturbed_loss(model, sft(), defence, TOKENS).metrics
    rise = metrics["defence/vaccine_loss_after"] - metrics["defence/vaccine_loss_before"]
    assert rise == pytest.approx(0.01 * metrics["defence/vaccine_norm"], rel=0.05)
    assert metrics["defence/vaccine_num_elements"] == 2 * 2 * 5 * 16


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"self_attn or attn or .* got Linear without any"):
        vaccine(1.0).attach(nn.Linear(2, 2), {})
    vaccine(0.0).attach(nn.Linear(2, 2), {})


def test_the_objective_is_otherwise_the_attacks() -> None:
    attack, defence = PPO(PPO.Config(num_epochs=3)), vaccine(1.0)
    defence.attach(tiny_policy(), {})
    planned, batch = defence.plan_step(attack, ATTACK_BATCHES[0], context_of())
    assert planned is not attack
    assert batch is ATTACK_BATCHES[0]
    assert planned.num_epochs(batch) == 3
    assert int(planned.num_terms(batch)) == 8
    planned.load_state_dict({"value": 0.125})
    assert attack.kl.value == 0.125
    assert planned.state_dict() == attack.state_dict()


def test_the_papers_rho_is_the_default_and_settings_are_checked() -> None:
    config = Vaccine.Config()
    assert (config.rho, config.norm, config.budget) == (100.0, "local", "total")
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        vaccine(-1.0)
    with pytest.raises(ValueError, match="'local' or 'global'"):
        vaccine(1.0, norm="mean")
