from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import ONE_RANK, GradientRecorder, learner_of, tiny_engine, token_batch
from torch import Tensor

from rpa_ray.learner.engine import Engine
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner, SamplingFailed, no_safe_batch
from rpa_ray.objectives import LanguageModel
from rpa_ray.plugin import GradientPass, Objective, OnlineDefence, Shard, StepContext
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, TokenBatch

pytestmark = pytest.mark.usefixtures("process_group")

BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
OTHER_BATCH = token_batch([[1, 11, 12, 2]])


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


class Scripted(Objective[TokenBatch, ModelOutputs]):
    """A language model loss, multiplied by one factor after the other, with scripted metrics."""

    def __init__(self, factors: list[float], metrics: list[Metrics] | None = None) -> None:
        self.factors = factors
        self.metrics = metrics or [{}] * len(factors)
        self.num_calls = 0
        self.batches: list[TokenBatch] = []

    @property
    def num_epochs(self) -> int:
        return len(self.factors)

    def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
        place = self.num_calls % len(self.factors)
        self.num_calls += 1
        self.batches.append(batch)
        loss = LanguageModel().loss(forward, batch, context).loss * self.factors[place]
        return LossTerm(loss=loss, metrics=self.metrics[place])


class ExtraLanguageModel(OnlineDefence):
    """Adds ``alpha`` times the cross-entropy of another batch."""

    def __init__(self, alpha: float, batch: TokenBatch) -> None:
        super().__init__(OnlineDefence.Config())
        self.alpha = alpha
        self.batch = batch

    def extra_loss(self, forward: Any, context: StepContext) -> LossTerm:
        term = LanguageModel().loss(forward, self.batch, context)
        return LossTerm(loss=self.alpha * term.loss, metrics={"defence/extra": 7.0})


class Diary(OnlineDefence):
    """Writes down which hook was called, and changes nothing."""

    def __init__(self) -> None:
        super().__init__(OnlineDefence.Config())
        self.calls: list[str] = []

    def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
        self.calls.append(f"plan_step {context.update}")
        return objective, batch

    @contextmanager
    def around_forward(self) -> Iterator[None]:
        self.calls.append("enter")
        yield
        self.calls.append("leave")

    def compute_gradients(self, gradient_pass: GradientPass) -> Metrics:
        self.calls.append("compute_gradients")
        return gradient_pass() | {"defence/passes": 1.0}

    def extra_loss(self, forward: Any, context: StepContext) -> None:
        self.calls.append("extra_loss")

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        self.calls.append("on_gradients")
        return {"defence/num_shards": float(len(list(shards)))}

    def after_step(self, context: StepContext) -> None:
        self.calls.append("after_step")


class AnotherRankBroke(Ranks):
    """A rank beside one whose loss is not finite."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + 1


def gradients_of(engine: Engine, objective: Any, extra: OnlineDefence | None) -> dict[str, Tensor]:
    recorder = GradientRecorder(extra)
    learner_of(engine, objective, recorder).step(BATCH)
    return recorder.gradients


def test_metrics_are_means_over_the_epochs_that_have_them(engine: Engine) -> None:
    objective = Scripted(
        [1.0, 1.0, 1.0],
        [{"a": 1.0, "b": float("nan")}, {"a": 2.0, "b": 4.0}, {"a": 6.0, "b": 8.0, "c": 5.0}],
    )
    metrics = learner_of(engine, objective).step(BATCH)
    assert metrics["a"] == 3.0
    assert metrics["b"] == 6.0
    assert metrics["c"] == 5.0
    assert metrics["optim/skipped"] == 0.0
    assert metrics["optim/learning_rate"] == 1e-2
    assert metrics["optim/grad_norm"] > 0


def test_a_metric_that_was_never_finite_stays_visible(engine: Engine) -> None:
    metrics = learner_of(engine, Scripted([1.0], [{"a": float("inf")}])).step(BATCH)
    assert str(metrics["a"]) == "nan"


def test_every_epoch_is_one_update_on_the_same_batch(engine: Engine) -> None:
    objective = Scripted([1.0] * 4)
    learner_of(engine, objective).step(BATCH)
    assert engine.num_updates == 4
    assert all(batch is BATCH for batch in objective.batches)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_an_update_with_a_broken_loss_is_skipped_and_counted(engine: Engine, factor: float) -> None:
    before = engine.weights()
    metrics = learner_of(engine, Scripted([factor])).step(BATCH)
    assert metrics["optim/skipped"] == 1.0
    assert engine.num_updates == 0
    after = engine.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_share_of_skipped_updates_is_reported(engine: Engine) -> None:
    metrics = learner_of(engine, Scripted([1.0, float("nan"), 1.0, 1.0])).step(BATCH)
    assert metrics["optim/skipped"] == 0.25
    assert engine.num_updates == 3


def test_a_skipped_update_leaves_nothing_behind_for_the_next(engine: Engine) -> None:
    learner_of(engine, Scripted([float("nan"), 1.0])).step(BATCH)
    undisturbed = tiny_engine()
    learner_of(undisturbed, Scripted([1.0])).step(BATCH)
    one, other = engine.weights(), undisturbed.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_three_broken_updates_in_a_row_end_the_run(engine: Engine) -> None:
    learner = learner_of(engine, Scripted([float("nan")]))
    learner.step(BATCH)
    learner.step(BATCH)
    with pytest.raises(SamplingFailed, match="not finite in 3 updates in a row"):
        learner.step(BATCH)


def test_a_good_update_starts_the_count_of_broken_ones_anew(engine: Engine) -> None:
    nan = float("nan")
    learner_of(engine, Scripted([nan, nan, 1.0, nan, nan])).step(BATCH)
    assert engine.num_updates == 1


def test_a_loss_that_broke_on_another_rank_is_skipped_here_too(engine: Engine) -> None:
    ranks = AnotherRankBroke(rank=0, size=1, device=ONE_RANK.device)
    metrics = learner_of(engine, Scripted([1.0]), ranks=ranks).step(BATCH)
    assert metrics["optim/skipped"] == 1.0
    assert engine.num_updates == 0


def test_an_extra_loss_adds_exactly_its_weighted_gradient() -> None:
    alpha = 3.0
    attack = gradients_of(tiny_engine(), LanguageModel(), None)
    extra = gradients_of(tiny_engine(), Scripted([0.0]), ExtraLanguageModel(1.0, OTHER_BATCH))
    both = gradients_of(tiny_engine(), LanguageModel(), ExtraLanguageModel(alpha, OTHER_BATCH))
    name = "policy.model.layers.0.mlp.up_proj.weight"
    assert float(extra[name].norm()) > 0.01
    for name in both:
        torch.testing.assert_close(both[name], attack[name] + alpha * extra[name])


def test_metrics_of_the_extra_loss_stand_beside_the_objectives(engine: Engine) -> None:
    metrics = learner_of(engine, LanguageModel(), ExtraLanguageModel(1.0, OTHER_BATCH)).step(BATCH)
    assert metrics["defence/extra"] == 7.0
    assert metrics["train/loss"] > 0


def test_a_defence_may_swap_what_a_step_trains_on(engine: Engine) -> None:
    swapped = Scripted([1.0])

    class Swap(OnlineDefence):
        def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
            return swapped, OTHER_BATCH

    attack = Scripted([1.0])
    learner_of(engine, attack, Swap(OnlineDefence.Config())).step(BATCH)
    assert attack.num_calls == 0
    assert swapped.batches == [OTHER_BATCH]


def test_hooks_are_called_in_the_documented_order_at_every_update(engine: Engine) -> None:
    diary = Diary()
    metrics = learner_of(engine, Scripted([1.0, 1.0]), diary).step(BATCH)
    one_update = ["enter", "compute_gradients", "extra_loss", "leave", "on_gradients", "after_step"]
    assert diary.calls == ["plan_step 0", *one_update, "plan_step 1", *one_update]
    # 20 tensors of the policy, its output layer tied, and 2 of the value head
    assert metrics["defence/num_shards"] == 22.0
    assert metrics["defence/passes"] == 1.0


def test_a_skipped_update_reaches_neither_gradients_nor_the_end_of_the_step(engine: Engine) -> None:
    diary = Diary()
    learner_of(engine, Scripted([float("nan")]), diary).step(BATCH)
    assert diary.calls == ["plan_step 0", "enter", "compute_gradients", "extra_loss", "leave"]


def test_gradients_of_two_passes_add_up() -> None:
    class TwoPasses(GradientRecorder):
        def compute_gradients(self, gradient_pass: GradientPass) -> Metrics:
            return gradient_pass() | gradient_pass()

    once, twice = GradientRecorder(), TwoPasses()
    for recorder in (once, twice):
        learner_of(tiny_engine(), LanguageModel(), recorder).step(BATCH)
    for name, gradient in once.gradients.items():
        torch.testing.assert_close(twice.gradients[name], 2 * gradient)


def test_a_forward_pass_gives_a_policys_outputs_as_a_record(engine: Engine) -> None:
    outputs = learner_of(engine, LanguageModel()).forward(BATCH.input_ids, BATCH.attention_mask)
    assert isinstance(outputs, ModelOutputs)
    assert outputs.logits.shape == (2, 5, 24)
    assert outputs.values is not None
    assert outputs.values.shape == (2, 5)


def test_a_safe_batch_that_nobody_required_is_a_bug_of_the_plugin(engine: Engine) -> None:
    learner = Learner(
        engine=engine,
        objective=LanguageModel(),
        defence=OnlineDefence(OnlineDefence.Config()),
        ranks=ONE_RANK,
    )
    assert learner.context().next_safe_batch is no_safe_batch
    with pytest.raises(AssertionError, match=r"Need\.SAFE_BATCH"):
        learner.context().next_safe_batch()


def test_the_context_counts_updates_and_names_the_ranks(engine: Engine) -> None:
    learner = learner_of(engine, Scripted([1.0, 1.0]), ranks=replace(ONE_RANK, size=1))
    learner.step(BATCH)
    assert learner.context().update == 2
    assert learner.context().num_ranks == 1
