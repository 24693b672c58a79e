from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fakes import context_of, uniform_forward
from torch import Tensor

from rpa_ray.config import ConfigError
from rpa_ray.defences import defence_of
from rpa_ray.defences.composed import Composed, contradiction
from rpa_ray.defences.online.freeze import Freeze
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.plan.load import parse_tree
from rpa_ray.plugin import ComposedConfig, Need, OnlineDefence, PluginConfig
from rpa_ray.types import LossTerm


class Part(OnlineDefence):
    """Writes its name into whatever passes through its hooks."""

    def __init__(self, name: str, diary: list[str]) -> None:
        super().__init__(PluginConfig(name=name))
        self.diary = diary
        self.state = 0.0

    def note(self, hook: str) -> None:
        self.diary.append(f"{hook} {self.config.name}")

    def attach(self, model: Any, folders: Any) -> None:
        self.note("attach")

    def attach_compared(self, model: Any) -> None:
        self.note("compared")

    def own_updates(self, context: Any) -> Iterator[tuple[Any, Any]]:
        yield self.config.name, "batch"

    def plan_step(self, objective: Any, batch: Any, context: Any) -> Any:
        return f"{self.config.name}({objective})", batch

    @contextmanager
    def around_forward(self) -> Iterator[None]:
        self.note("enter")
        yield
        self.note("leave")

    def compute_gradients(self, gradient_pass: Any, forward: Any, context: Any) -> Any:
        self.note("gradients")
        return gradient_pass() | {f"defence/{self.config.name}": 1.0}

    def extra_loss(self, forward: Any, context: Any) -> LossTerm:
        loss = torch.tensor({"a": 1.0, "b": 10.0}[self.config.name])
        return LossTerm(loss=loss, metrics={f"defence/loss_{self.config.name}": float(loss)})

    def on_gradients(self, shards: Any, context: Any) -> Any:
        return {"defence/num": float(len(list(shards)))}

    def after_step(self, masters: Any, context: Any) -> None:
        self.diary += [f"after {self.config.name} {name}" for name, _ in masters]

    def rollout_weight_filter(self, name: str, tensor: Tensor) -> Tensor:
        return 2 * tensor if self.config.name == "a" else tensor + 1

    def state_dict(self) -> dict[str, Tensor | float]:
        return {"state": self.state}

    def load_state_dict(self, state: Any) -> None:
        self.state = state["state"]


@pytest.fixture
def diary() -> list[str]:
    return []


@pytest.fixture
def composed(diary: list[str]) -> Composed:
    parts = [Part("a", diary), Part("b", diary)]
    config = ComposedConfig(name="a+b", parts=tuple(part.config for part in parts))
    return Composed(config, parts)


def test_hooks_go_through_the_parts_in_order(composed: Composed, diary: list[str]) -> None:
    composed.attach(torch.nn.Linear(1, 1), {})
    composed.attach_compared(torch.nn.Linear(1, 1))
    with composed.around_forward():
        found = composed.compute_gradients(lambda: {}, uniform_forward, context_of())
        assert found == {"defence/a": 1.0, "defence/b": 1.0}
    composed.after_step(iter([("w", torch.zeros(1))]), context_of())
    assert diary == [
        *("attach a", "attach b", "compared a", "compared b", "enter a", "enter b"),
        *("gradients b", "gradients a", "leave b", "leave a", "after a w", "after b w"),
    ]


def test_what_one_part_returns_the_next_is_given(composed: Composed) -> None:
    assert composed.plan_step("attack", "rows", context_of()) == ("b(a(attack))", "rows")  # type: ignore[type-var]
    assert list(composed.own_updates(context_of())) == [("a", "batch"), ("b", "batch")]
    # doubled first, then one more
    assert composed.rollout_weight_filter("w", torch.tensor(3.0)) == 7.0


def test_losses_add_up_and_keep_their_metrics(composed: Composed) -> None:
    term = composed.extra_loss(lambda input_ids, attention_mask: None, context_of())  # type: ignore[arg-type,return-value]
    assert term is not None
    assert float(term.loss) == 11.0
    assert term.metrics == {"defence/loss_a": 1.0, "defence/loss_b": 10.0}


def test_every_part_is_given_every_shard(composed: Composed) -> None:
    metrics = composed.on_gradients(iter([1, 2, 3]), context_of())  # type: ignore[list-item]
    assert metrics == {"defence/a/num": 3.0, "defence/b/num": 3.0}


def test_every_part_keeps_its_own_state(composed: Composed, diary: list[str]) -> None:
    for state, part in enumerate(composed.parts):
        part.state = float(state)  # type: ignore[attr-defined]
    other = Composed(composed.config, [Part("a", diary), Part("b", diary)])  # type: ignore[arg-type]
    other.load_state_dict(composed.state_dict())
    assert [part.state for part in other.parts] == [0.0, 1.0]  # type: ignore[attr-defined]


def test_a_list_in_the_config_is_one_defence_with_the_needs_of_all() -> None:
    lisa = {"name": "lisa", "rho": 3}
    settings = parse_tree({"attack": "sft", "defence": [lisa, "refusal_loss"]})
    defence = defence_of(settings.defence)
    assert isinstance(defence, Composed)
    assert settings.defence.name == "lisa+refusal_loss"
    assert [type(part) for part in defence.parts] == [Lisa, RefusalLoss]
    assert defence.parts[0].config.rho == 3  # type: ignore[attr-defined]
    assert defence.needs == {Need.SAFE_BATCH}
    # what a run writes into its folder is read back as the same
    assert parse_tree(settings.to_yaml_dict()) == settings


def test_a_list_of_one_is_that_one() -> None:
    settings = parse_tree({"attack": "sft", "defence": ["lisa"]})
    assert settings == parse_tree({"attack": "sft", "defence": "lisa"})


@pytest.mark.parametrize(
    ("defence", "message"),
    [
        (["lisa", "lisa"], "lisa is there twice"),
        (["lisa", "freeze"], "freeze: it changes how much is learned and is a control"),
        (["none", "lisa"], "none stands alone"),
        (
            ["refusal_loss", {"name": "lisa", "mode": "bi_state", "batch_size": 16}],
            "batch_size is {'refusal_loss': 8, 'lisa': 16}: set one size",
        ),
        (
            [{"name": "refusal_loss", "prefix": "recovery"}, {"name": "lisa", "mode": "bi_state"}],
            "prefix is recovery for one alone",
        ),
        (
            ["safegrad", {"name": "random_anchor"}],
            "random_anchor and safegrad compare with different models",
        ),
        (
            ["reward_shaping", "safe_rlhf"],
            "reward_shaping and safe_rlhf: only one defence can decide what the attack learns",
        ),
        (
            [{"name": "safe_rlhf", "critics": "one_mixed"}, "reward_shaping"],
            "safe_rlhf and reward_shaping: only one defence can decide what the attack learns",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(defence: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tree({"attack": "ppo", "defence": defence})
    assert str(caught.value).startswith("defence must list what can run together, got '")
    assert message in str(caught.value)


def test_a_wrong_part_is_refused_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^defence\[1\]\.alpha must be greater than or equal"):
        parse_tree({"attack": "sft", "defence": ["lisa", {"name": "refusal_loss", "alpha": -1}]})


def test_one_defence_never_contradicts_itself() -> None:
    assert contradiction(["freeze"], [Freeze(Freeze.Config())]) is None


def test_one_part_that_reads_answers_otherwise_than_they_were_sampled_is_enough() -> None:
    vectors = {"name": "security_vectors", "rollout_adapter": False}
    for parts, is_same in ((["lisa", "refusal_loss"], True), (["refusal_loss", vectors], False)):
        defence = defence_of(parse_tree({"attack": "ppo", "defence": parts}).defence)
        assert isinstance(defence, Composed)
        assert defence.reads_as_sampled == is_same
