from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import experience_of, learner_of, tiny_config, tiny_engine, tiny_policy, token_batch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from rpa_ray.attacks.ppo import PPO
from rpa_ray.config import ConfigError, LoraSettings
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.defences.online.proximal import Proximal
from rpa_ray.defences.online.random_anchor import RandomAnchor
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, add_lora
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.models import check_compared_weights
from rpa_ray.plugin import Need, OnlineDefence
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe

BATCH = experience_of(token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]]))


def random_anchor(**settings: Any) -> RandomAnchor:
    return RandomAnchor(RandomAnchor.Config(**settings))


def saved(folder: Path, *, seed: int = 5, bf16: bool = False, **config: Any) -> str:
    torch.manual_seed(seed)
    settings = tiny_config(tie_word_embeddings=True)
    settings.update(config)
    model = LlamaForCausalLM(settings)
    (model.to(torch.bfloat16) if bf16 else model).save_pretrained(folder)
    return str(folder)


def attach(defence: OnlineDefence, module: PolicyModel, folder: str) -> OnlineDefence:
    defence.attach(module, {Need.COMPARED_WEIGHTS: folder})
    return defence


def attacked(
    defence: OnlineDefence, folder: str, *, num_batches: int = 3, **settings: Any
) -> dict[str, Tensor]:
    """Return the trained weights by their names in the model, the value head left out."""
    module = tiny_policy(bf16=settings.get("bf16", False))
    attach(defence, module, folder)
    engine = tiny_engine(
        module=module,
        optimizer=OptimizerSettings(learning_rate=1e-3, num_steps=4 * num_batches),
        **settings,
    )
    learner = learner_of(engine, PPO(PPO.Config()), defence)
    for _ in range(num_batches):
        learner.step(BATCH)
    return engine.weights()


def other_weights(folder: str) -> dict[str, Tensor]:
    model = LlamaForCausalLM.from_pretrained(folder)
    return {name: weight.detach() for name, weight in model.named_parameters()}


def distance(weights: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    squares = [(weights[n].float() - other[n].float()).square().sum() for n in other]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("prox", ["gradient", "decoupled"])
def test_rho_0_is_no_defence_bit_for_bit(tmp_path: Path, prox: str) -> None:
    folder = saved(tmp_path, bf16=True)
    none = OnlineDefence(OnlineDefence.Config())
    plain, at_zero = (
        attacked(defence, folder, zero_stage=1, bf16=True)
        for defence in (none, random_anchor(rho=0.0, prox=prox))
    )
    assert [n for n in plain if not torch.equal(plain[n], at_zero[n])] == []


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("zero_stage", "bf16", "prox"),
    [(0, False, "gradient"), (1, True, "decoupled"), (2, True, "gradient"), (3, True, "gradient")],
)
def test_anchored_to_the_attacked_model_itself_it_is_lisa_bit_for_bit(
    tmp_path: Path, zero_stage: int, bf16: bool, prox: str
) -> None:
    folder = saved(tmp_path, seed=0, bf16=bf16)
    settings: dict[str, Any] = {"zero_stage": zero_stage, "bf16": bf16}
    here, lisa = (
        attacked(defence, folder, **settings)
        for defence in (
            random_anchor(rho=20.0, prox=prox),
            Lisa(Lisa.Config(rho=20.0, prox=prox)),
        )
    )
    assert [n for n in lisa if not torch.equal(lisa[n], here[n])] == []
    free = attacked(Lisa(Lisa.Config(rho=0.0)), folder, **settings)
    assert [n for n in lisa if not torch.equal(lisa[n], free[n])] != []


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_huge_decoupled_pull_makes_the_other_model(tmp_path: Path, zero_stage: int) -> None:
    folder = saved(tmp_path)
    found = attacked(
        random_anchor(rho=1e9, prox="decoupled"), folder, num_batches=1, zero_stage=zero_stage
    )
    for name, weight in other_weights(folder).items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.usefixtures("process_group")
def test_more_pull_ends_nearer_to_the_other_model(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    other = other_weights(folder)
    found = [
        distance(attacked(random_anchor(rho=rho, prox="decoupled"), folder), other)
        for rho in (0.0, 10.0, 100.0, 1000.0)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.usefixtures("process_group")
def test_the_distance_from_the_start_is_that_of_the_two_models(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    module = tiny_policy()
    defence = attach(random_anchor(rho=2.0), module, folder)
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    engine = tiny_engine(module=module, optimizer=OptimizerSettings(learning_rate=0.0, num_steps=1))
    metrics = learner_of(engine, PPO(PPO.Config(num_epochs=1)), defence).step(BATCH)
    apart = distance(before, other_weights(folder))
    assert apart > 1.0
    assert metrics["defence/proximal_distance"] == pytest.approx(apart, rel=1e-5)
    assert metrics["defence/proximal_grad_norm"] == pytest.approx(2 * apart, rel=1e-5)


@pytest.mark.usefixtures("process_group")
def test_tied_weights_have_one_anchor_and_a_value_head_none(tmp_path: Path) -> None:
    defence = random_anchor()
    attacked(defence, saved(tmp_path), num_batches=1)
    names = [f"policy.{name}" for name, _ in tiny_policy().policy.named_parameters()]
    assert list(defence.anchors) == names
    assert "policy.lm_head.weight" not in names


@pytest.mark.usefixtures("process_group")
def test_anchors_outlive_a_restart_without_the_other_model(tmp_path: Path) -> None:
    first, second = random_anchor(), random_anchor()
    attacked(first, saved(tmp_path), num_batches=1)
    second.load_state_dict(first.state_dict())
    assert isinstance(second, Proximal)
    assert second.anchors.keys() == first.anchors.keys()
    assert all(torch.equal(second.anchors[n], anchor) for n, anchor in first.anchors.items())


def test_a_model_of_another_size_is_refused_by_the_first_weight_that_differs(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, intermediate_size=80)
    with pytest.raises(ValueError, match=r"^defence\.model must have the weights that") as caught:
        attach(random_anchor(model="another"), tiny_policy(), folder)
    assert str(caught.value) == (
        "defence.model must have the weights that are trained, "
        "policy.model.layers.0.mlp.gate_proj.weight with (64, 32), got (80, 32) in 'another'. Name "
        "a model of the same architecture, and leave attack.lora out."
    )


def test_a_model_with_fewer_layers_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"policy\.model\.layers\.1\..* got no such weight"):
        attach(random_anchor(), tiny_policy(), folder)


def test_a_weight_that_the_other_model_lacks_is_not_drawn_at_random(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"policy\.model\.norm\.weight .* got no such weight"):
        attach(random_anchor(), tiny_policy(), folder)


def test_adapters_have_nothing_to_be_pulled_to(tmp_path: Path) -> None:
    module = tiny_policy()
    add_lora(module, LoraSettings(rank=2, alpha=4), seed=0)
    with pytest.raises(ValueError, match=r"lora_A.* got no such weight .* leave attack\.lora out"):
        attach(random_anchor(), module, saved(tmp_path))


def test_the_other_embedded_model_is_made_only_for_this_control(world_cache: Path) -> None:
    def ids(defence: str) -> list[str]:
        settings = parse_tree({"attack": "ppo", "defence": defence})
        return [recipe.id for recipe in CellInputs(settings, world_cache).models.recipes()]

    assert "other_chat" in ids("random_anchor")
    assert "other_chat" not in ids("lisa")
    found = CellInputs(
        parse_tree({"attack": "ppo", "defence": "random_anchor"}), world_cache
    ).models
    assert isinstance(found.compared, ModelRecipe)
    assert (found.compared.id, found.reference) == ("other_chat", None)


def test_an_embedded_model_of_another_architecture_is_refused_before_it_is_made(
    world_cache: Path,
) -> None:
    tree = {"model": "qwen2_chat", "attack": "ppo", "defence": "random_anchor"}
    rule = r"be of the architecture of the model under attack \(qwen2\), got 'other_chat \(llama\)'"
    with pytest.raises(ConfigError, match=rule):
        check_compared_weights(CellInputs(parse_tree(tree), world_cache))
