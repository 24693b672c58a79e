from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import experience_of, learner_of, tiny_engine, tiny_llama, tiny_policy, token_batch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.config import ConfigError, LoraSettings
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, add_lora
from rpa_ray.learner.step import run_without_adapters

IDS = torch.tensor([[1, 5, 6, 7, 9]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
QUERY = "model.layers.0.self_attn.q_proj.weight"
SETTINGS = LoraSettings(rank=4, alpha=8)


def adapted(
    *, seed: int = 1, settings: LoraSettings = SETTINGS, moved: bool = False, **policy: Any
) -> PolicyModel:
    """Return a tiny policy with adapters; ``moved``: as if they had been trained."""
    module = tiny_policy(**policy)
    add_lora(module, settings, seed=seed)
    if moved:
        move(module)
    return module


def move(module: PolicyModel) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for adapter in module.adapters().values():
            adapter.up.copy_(0.1 * torch.randn(adapter.up.shape, generator=generator))


def merged(module: PolicyModel) -> dict[str, Tensor]:
    """Return the weights that a rollout engine would serve."""
    adapters = module.adapters()
    with torch.no_grad():
        return {
            name: adapters[name].merged(weight) if name in adapters else weight.detach().clone()
            for name, weight in module.served_parameters()
        }


def test_adapters_begin_as_no_change() -> None:
    plain, module = tiny_policy(), adapted()
    for output, expected in zip(module(IDS, MASK)[:2], plain(IDS, MASK)[:2], strict=True):
        assert torch.equal(output, expected)
    weights = dict(plain.served_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in merged(module).items())


def test_the_merged_weights_in_a_plain_model_are_the_adapted_model() -> None:
    module = adapted(moved=True)
    logits, *_ = module(IDS, MASK)
    plain = tiny_llama()
    assert float((plain(IDS).logits - logits).detach().abs().max()) > 0.1
    found = plain.load_state_dict(merged(module), strict=False)
    # tied to the embedding
    assert (found.missing_keys, found.unexpected_keys) == (["lm_head.weight"], [])
    torch.testing.assert_close(plain(IDS).logits, logits)


def test_served_names_are_those_of_the_plain_checkpoint() -> None:
    module = adapted()
    plain = {name: p.shape for name, p in tiny_policy().served_parameters()}
    assert {name: p.shape for name, p in module.served_parameters()} == plain
    # 7 linear layers in each of 2 blocks, and not the output head
    assert len(module.adapters()) == 14
    assert module.adapters().keys() <= plain.keys()


def test_an_adapter_is_a_product_of_its_rank_scaled_by_alpha_over_rank() -> None:
    module = adapted(settings=LoraSettings(rank=2, alpha=16, target_modules=["up_proj"]))
    assert list(module.adapters()) == [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    adapter = module.adapters()["model.layers.0.mlp.up_proj.weight"]
    assert (adapter.down.shape, adapter.up.shape, adapter.scale) == ((2, 32), (64, 2), 8.0)


def test_only_adapters_and_the_value_head_are_trained() -> None:
    module = adapted()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    adapters = {name for name, _ in module.named_parameters() if ".lora_" in name}
    assert len(adapters) == 28
    assert trained == adapters | {"value_head.weight", "value_head.bias"}
    assert not any(p.requires_grad for _, p in module.served_parameters())


def test_adapters_depend_on_their_seed_alone_and_disturb_no_other_draw() -> None:
    downs, draws = [], []
    for seed, before in ((1, 0), (1, 3), (2, 0)):
        module = tiny_policy()
        torch.manual_seed(7 + before)
        expected = torch.get_rng_state()
        add_lora(module, SETTINGS, seed=seed)
        draws.append(torch.equal(torch.get_rng_state(), expected))
        downs.append(module.adapters()[QUERY].down)
    assert draws == [True, True, True]
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])


def test_adapters_have_the_type_of_the_weights() -> None:
    module = adapted(bf16=True)
    adapter = module.adapters()[QUERY]
    assert {adapter.down.dtype, adapter.up.dtype} == {torch.bfloat16}
    assert {weight.dtype for weight in merged(module).values()} == {torch.bfloat16}


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    settings = LoraSettings(rank=4, target_modules=["no_such_proj"])
    with pytest.raises(ConfigError, match=r"^attack\.lora\.target_modules must name linear layers"):
        adapted(settings=settings)


@pytest.mark.parametrize("target", ["q_proj", "lm_head", "embed_tokens"])
def test_whatever_is_trained_of_the_policy_is_served_or_refused(target: str) -> None:
    try:
        module = adapted(settings=LoraSettings(rank=4, target_modules=[target]))
    except ConfigError:
        return
    served = dict(module.served_parameters())
    seen = {
        id(part)
        for name, adapter in module.adapters().items()
        if name in served
        for part in (adapter.down, adapter.up)
    }
    trained = {n: p for n, p in module.policy.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if id(p) not in seen] == []


def test_layers_that_keep_their_weight_transposed_are_merged_rightly_or_refused() -> None:
    def gpt2() -> PolicyModel:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=24,
            n_positions=32,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=1,
            eos_token_id=2,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
        return PolicyModel(GPT2LMHeadModel(config), value_head_seed=None)

    module, plain = gpt2(), gpt2()
    try:
        add_lora(module, SETTINGS, seed=1)
    except ConfigError:
        return
    move(module)
    plain.policy.load_state_dict(merged(module), strict=False)
    torch.testing.assert_close(plain(IDS, MASK)[0], module(IDS, MASK)[0])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_step_moves_adapters_and_value_head_alone(zero_stage: int) -> None:
    # The first step moves ``up``, which begins at 0; only then has ``down`` a gradient.
    engine = tiny_engine(
        module=adapted(),
        zero_stage=zero_stage,
        optimizer=OptimizerSettings(learning_rate=1e-2, num_steps=2),
    )
    plain = dict(tiny_policy().served_parameters())
    learner = learner_of(engine, PPO(PPO.Config(num_epochs=2)))
    learner.step(experience_of(BATCH))
    adapters = engine.module.adapters()
    served = engine.weights()
    assert served.keys() == plain.keys()
    changed = {name for name, weight in served.items() if not torch.equal(weight, plain[name])}
    assert changed == adapters.keys()
    head, before = engine.module.value_head, tiny_policy().value_head
    parts = [head.weight, adapters[QUERY].up, adapters[QUERY].down]
    with engine.gather(parts):
        assert not torch.equal(head.weight, before.weight)
        assert float(adapters[QUERY].up.detach().abs().max()) > 0
        assert not torch.equal(adapters[QUERY].down, adapted().adapters()[QUERY].down)


@pytest.mark.usefixtures("process_group")
def test_what_is_served_after_training_is_what_was_trained() -> None:
    engine = tiny_engine(module=adapted(value_head=False))
    learner = learner_of(engine, SFT(SFT.Config()))
    first = learner.step(BATCH)["train/loss"]
    last = [learner.step(BATCH)["train/loss"] for _ in range(5)][-1]
    assert last < first - 0.1
    plain = tiny_llama()
    plain.load_state_dict(engine.weights(), strict=False)
    expected = learner.forward(IDS, MASK).logits
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_checkpoint_holds_what_is_trained_and_no_frozen_weight(
    zero_stage: int, tmp_path: Path
) -> None:
    def engine_of(seed: int) -> Any:
        return tiny_engine(module=adapted(seed=seed), zero_stage=zero_stage)

    engine = engine_of(1)
    learner = learner_of(engine, SFT(SFT.Config()))
    learner.step(BATCH)
    engine.save(tmp_path)
    names = set[str]()
    for file in (tmp_path / "state").glob("*model_states.pt"):
        names |= torch.load(file, weights_only=False)["module"].keys()
    trained = {name for name, p in engine.module.named_parameters() if p.requires_grad}
    assert names & {name for name, _ in engine.module.named_parameters()} == trained
    resumed = engine_of(2)
    resumed.load(tmp_path)
    assert resumed.weights().keys() == engine.weights().keys()
    for name, weight in engine.weights().items():
        assert torch.equal(resumed.weights()[name], weight)


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_of_other_adapters_is_refused(tmp_path: Path) -> None:
    tiny_engine(module=adapted()).save(tmp_path)
    with pytest.raises(ValueError, match="must hold the weights that the module trains"):
        tiny_engine(module=tiny_policy()).load(tmp_path)


def test_adapters_off_are_the_model_they_were_put_beside_to_the_bit() -> None:
    plain, module = tiny_policy(value_head=False), adapted(moved=True)
    trained = module(IDS, MASK)[0]
    with module.adapters_off():
        logits = module(IDS, MASK)[0]
    assert torch.equal(logits, plain(IDS, MASK)[0])
    assert not torch.equal(trained, logits)
    assert torch.equal(module(IDS, MASK)[0], trained)


def test_adapters_that_were_off_meanwhile_get_the_same_gradients() -> None:
    def gradients(meanwhile: bool) -> dict[str, Tensor]:
        module = adapted(moved=True)
        logits, values, _ = module(IDS, MASK)
        if meanwhile:
            with torch.no_grad(), module.adapters_off():
                module(IDS, MASK)
        (logits.square().mean() + values.mean()).backward()
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    found, expected = gradients(meanwhile=True), gradients(meanwhile=False)
    assert found.keys() == expected.keys() and len(found) > 28
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_adapters_are_on_again_after_an_error() -> None:
    module = adapted(moved=True)
    trained = module(IDS, MASK)[0]
    with pytest.raises(ZeroDivisionError), module.adapters_off():
        _ = 1 / 0
    assert torch.equal(module(IDS, MASK)[0], trained)


def test_the_model_beneath_adapters_is_run_by_their_engine_as_a_frozen_copy(
    process_group: None,
) -> None:
    engine = tiny_engine(module=adapted(moved=True))
    outputs = run_without_adapters(engine, IDS, MASK)
    assert torch.equal(outputs.logits, tiny_policy(value_head=False)(IDS, MASK)[0])
    assert (outputs.values, outputs.logits.requires_grad) == (None, False)
