from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import (
    ONE_RANK,
    GradientRecorder,
    experience_of,
    learner_of,
    loss_of,
    referenced_pairs,
    tiny_classifier,
    tiny_engine,
    token_batch,
)
from torch import Tensor

from rpa_ray.attacks.dpo import DPO
from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.learner.engine import Engine, OptimizerSettings
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner, SamplingFailed
from rpa_ray.plugin import GradientPass, Objective, OnlineDefence, Shard, StepContext
from rpa_ray.plugin.objectives import Judge, LanguageModel, RewardModel
from rpa_ray.plugin.step import NO_SAFE_BATCH
from rpa_ray.types import (
    Experience,
    LabelledBatch,
    LossTerm,
    Metrics,
    ModelOutputs,
    PairBatch,
    TokenBatch,
)

pytestmark = pytest.mark.usefixtures("process_group")

BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
OTHER_BATCH = token_batch([[1, 11, 12, 2]])
# Answers of 7, 1, 1, 4 and 2 tokens: micro-batches of two rows hold 8, 5 and 2.
UNEVEN = token_batch([[1, *range(3, 3 + n), 2] for n in (6, 0, 0, 3, 1)])
EVERY_STAGE = pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
# Adam's first update with a large eps is nearly proportional to the gradient.
PROPORTIONAL = OptimizerSettings(learning_rate=1.0, num_steps=1, eps=1.0)


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

    def num_epochs(self, batch: TokenBatch) -> int:
        return len(self.factors)

    def num_terms(self, batch: TokenBatch) -> Tensor:
        return LanguageModel().num_terms(batch)

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
        term = loss_of(LanguageModel(), forward, self.batch)
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

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Any, context: StepContext
    ) -> Metrics:
        self.calls.append("compute_gradients")
        return gradient_pass() | {"defence/passes": 1.0}

    def extra_loss(self, forward: Any, context: StepContext) -> None:
        self.calls.append("extra_loss")

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        self.calls.append("on_gradients")
        return {"defence/num_shards": float(len(list(shards)))}

    def own_updates(self, context: StepContext) -> tuple[()]:
        self.calls.append(f"own_updates {context.update}")
        return ()

    def after_step(self, masters: Iterable[tuple[str, Tensor]], context: StepContext) -> None:
        self.calls.append("after_step")


class TwoPasses(OnlineDefence):
    """Takes two passes through the batch."""

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Any, context: StepContext
    ) -> Metrics:
        gradient_pass()
        return gradient_pass()


class TwoCountedPasses(TwoPasses):
    """Counts how often its extra loss is asked for."""

    def __init__(self) -> None:
        super().__init__(OnlineDefence.Config())
        self.num_calls = 0

    def extra_loss(self, forward: Any, context: StepContext) -> None:
        self.num_calls += 1


class MeanOfMicroBatchMeans(Objective[Any, Any]):
    """Divides each micro-batch by its own number of terms: what must not be done."""

    def __init__(self, inner: Objective[Any, Any], num_parts: int) -> None:
        self.inner = inner
        self.num_parts = num_parts

    def num_terms(self, batch: Any) -> Tensor:
        return self.inner.num_terms(batch)

    def loss(self, forward: Any, batch: Any, context: StepContext) -> LossTerm:
        own = replace(context, num_terms=self.num_parts * int(self.num_terms(batch)))
        return self.inner.loss(forward, batch, own)


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


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("zero_stage", "bf16"), [(0, False), (1, True), (2, True), (3, True)])
def test_a_skipped_update_leaves_nothing_behind_for_the_next(zero_stage: int, bf16: bool) -> None:
    engine, undisturbed = (tiny_engine(zero_stage=zero_stage, bf16=bf16) for _ in range(2))
    learner_of(engine, Scripted([float("nan"), 1.0])).step(BATCH)
    learner_of(undisturbed, Scripted([1.0])).step(BATCH)
    one, other = engine.weights(), undisturbed.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_micro_batches_ask_the_other_ranks_no_further_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Tensor] = []

    def count(ranks: Ranks, tensor: Tensor) -> Tensor:
        asked.append(tensor)
        return tensor

    monkeypatch.setattr(Ranks, "sum", count)
    numbers = []
    for size in (1, len(BATCH.input_ids)):
        asked.clear()
        learner_of(tiny_engine(micro_batch_size=size), SFT(SFT.Config())).step(BATCH)
        numbers.append(len(asked))
    assert numbers[0] == numbers[1]


def test_three_broken_updates_in_a_row_end_the_run(engine: Engine) -> None:
    learner = learner_of(engine, Scripted([float("nan")]))
    learner.step(BATCH)
    learner.step(BATCH)
    with pytest.raises(SamplingFailed, match="not finite in 3 updates of the attack in a row"):
        learner.step(BATCH)


class OwnUpdates(OnlineDefence):
    """Makes one update of its own before each of the attack."""

    def __init__(self, objective: Scripted) -> None:
        super().__init__(OnlineDefence.Config())
        self.objective = objective

    def own_updates(self, context: StepContext) -> list[tuple[Scripted, TokenBatch]]:
        return [(self.objective, OTHER_BATCH)]


@pytest.mark.parametrize("broken", ["attack", "defence"])
def test_good_updates_of_the_other_hide_no_broken_ones(engine: Engine, broken: str) -> None:
    factors = {"attack": 1.0, "defence": 1.0} | {broken: float("nan")}
    defence = OwnUpdates(Scripted([factors["defence"]]))
    learner = learner_of(engine, Scripted([factors["attack"]]), defence)
    learner.step(BATCH)
    learner.step(BATCH)
    with pytest.raises(SamplingFailed, match=f"in 3 updates of the {broken} in a row"):
        learner.step(BATCH)


class ScriptedOnce(Scripted):
    """Leaves no broken update out."""

    @property
    def skips_broken_updates(self) -> bool:
        return False


def test_one_broken_update_ends_the_run_of_an_objective_that_skips_none(engine: Engine) -> None:
    with pytest.raises(SamplingFailed, match="the loss was not finite"):
        learner_of(engine, ScriptedOnce([1.0, float("nan")])).step(BATCH)
    assert engine.num_updates == 1


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
    first, second = (["own_updates " + i, "plan_step " + i, *one_update] for i in "01")
    assert diary.calls == [*first, *second]
    # 20 tensors of the policy, its output layer tied, and 2 of the value head
    assert metrics["defence/num_shards"] == 22.0
    assert metrics["defence/passes"] == 1.0


def test_a_skipped_update_reaches_neither_gradients_nor_the_end_of_the_step(engine: Engine) -> None:
    diary = Diary()
    learner_of(engine, Scripted([float("nan")]), diary).step(BATCH)
    before = ["own_updates 0", "plan_step 0"]
    assert diary.calls == [*before, "enter", "compute_gradients", "extra_loss", "leave"]


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
    assert learner.context().next_safe_batch is NO_SAFE_BATCH
    with pytest.raises(AssertionError, match=r"Need\.SAFE_BATCH"):
        learner.context().next_safe_batch()


def test_the_context_counts_updates_and_names_the_ranks(engine: Engine) -> None:
    learner = learner_of(engine, Scripted([1.0, 1.0]), ranks=replace(ONE_RANK, size=1))
    learner.step(BATCH)
    assert learner.context().update == 2
    assert learner.context().num_ranks == 1


PAIRS = PairBatch(chosen=UNEVEN, rejected=replace(UNEVEN, input_ids=UNEVEN.input_ids.flip(0)))
LABELLED = LabelledBatch(
    input_ids=UNEVEN.input_ids,
    attention_mask=UNEVEN.attention_mask,
    labels=torch.tensor([0, 1, 1, 0, 1]),
)


def grpo(aggregation: Any) -> GRPO:
    return GRPO(GRPO.Config(aggregation=aggregation, kl_coef=0.5, max_new_tokens=8))


KINDS: dict[str, tuple[Objective[Any, Any], Any, int | None]] = {
    "sft": (SFT(SFT.Config()), UNEVEN, None),
    "dpo": (DPO(DPO.Config()), referenced_pairs(PAIRS.chosen, PAIRS.rejected), None),
    "ppo": (PPO(PPO.Config(num_epochs=1)), experience_of(UNEVEN), None),
    "grpo": (grpo("grpo"), experience_of(UNEVEN), None),
    "grpo dapo": (grpo("dapo"), experience_of(UNEVEN), None),
    "grpo dr_grpo": (grpo("dr_grpo"), experience_of(UNEVEN), None),
    "language_model": (LanguageModel(), UNEVEN, None),
    "reward_model": (RewardModel(), PAIRS, 1),
    "judge": (Judge(), LABELLED, 2),
}


def one_step(
    kind: str, micro_batch_size: int, *, exact: bool = True, max_tokens: int | None = None
) -> tuple[Any, Metrics]:
    """Return weights and metrics after one update on the five rows of a kind of batch."""
    objective, batch, num_labels = KINDS[kind]
    module = None if num_labels is None else tiny_classifier(num_labels=num_labels)
    engine = tiny_engine(
        module=module,
        micro_batch_size=micro_batch_size,
        micro_batch_tokens=max_tokens,
        optimizer=PROPORTIONAL,
    )
    if not exact:
        objective = MeanOfMicroBatchMeans(objective, -(-5 // micro_batch_size))
    metrics = learner_of(engine, objective).step(batch)
    return engine.weights(), metrics


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_make_the_step_of_one_batch(kind: str, size: int) -> None:
    whole, expected = one_step(kind, 5)
    parts, metrics = one_step(kind, size)
    assert largest_difference(whole, parts) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_by_length_make_the_step_of_one_batch(kind: str, max_tokens: int) -> None:
    whole, expected = one_step(kind, 5)
    parts, metrics = one_step(kind, 5, max_tokens=max_tokens)
    assert largest_difference(whole, parts) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_of_micro_batch_means_would_be_another_step(kind: str) -> None:
    whole, _ = one_step(kind, 5)
    assert largest_difference(whole, one_step(kind, 5, exact=False)[0]) < 1e-6
    assert largest_difference(whole, one_step(kind, 2, exact=False)[0]) > 1e-4


def test_the_context_counts_the_terms_of_the_whole_step() -> None:
    seen = []

    class Counting(LanguageModel):
        def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
            seen.append((int(self.num_terms(batch)), context.num_terms))
            return super().loss(forward, batch, context)

    learner_of(tiny_engine(micro_batch_size=2), Counting()).step(UNEVEN)
    assert seen == [(8, 15), (5, 15), (2, 15)]


def test_the_terms_are_those_of_the_batch_that_a_defence_swapped_in() -> None:
    seen = []

    class Counting(LanguageModel):
        def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
            seen.append(context.num_terms)
            return super().loss(forward, batch, context)

    class Swap(OnlineDefence):
        def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
            return objective, OTHER_BATCH

    learner_of(tiny_engine(), Counting(), Swap(OnlineDefence.Config())).step(UNEVEN)
    assert seen == [3]


def test_a_step_without_a_single_term_is_a_step_of_loss_0() -> None:
    engine = tiny_engine(zero_stage=1)
    before = engine.weights()
    nothing = replace(UNEVEN, loss_mask=torch.zeros_like(UNEVEN.loss_mask))
    metrics = learner_of(engine, LanguageModel()).step(nothing)
    assert (metrics["train/loss"], metrics["optim/skipped"]) == (0.0, 0.0)
    assert largest_difference(before, engine.weights()) == 0.0
    attack = PPO(PPO.Config(num_epochs=1))
    metrics = learner_of(engine, attack).step(experience_of(nothing))
    assert metrics["policy/ratio"] == metrics["policy/entropy"] == metrics["optim/skipped"] == 0.0
    assert largest_difference(before, engine.weights()) == 0.0


def test_the_extra_loss_comes_once_a_pass_with_the_last_micro_batch() -> None:
    diary = Diary()
    objective = Scripted([1.0])
    learner_of(tiny_engine(micro_batch_size=2), objective, diary).step(UNEVEN)
    assert [len(batch.input_ids) for batch in objective.batches] == [2, 2, 1]
    assert diary.calls.count("extra_loss") == 1
    twice = TwoCountedPasses()
    learner_of(tiny_engine(micro_batch_size=2), LanguageModel(), twice).step(UNEVEN)
    assert twice.num_calls == 2


def test_metrics_of_micro_batches_add_up_and_maxima_do_not() -> None:
    class Measuring(LanguageModel):
        def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
            rows = float(len(batch.input_ids))
            term = super().loss(forward, batch, context)
            return replace(term, metrics={"rows": rows, "rows_max": rows})

    metrics = learner_of(tiny_engine(micro_batch_size=2), Measuring()).step(UNEVEN)
    assert (metrics["rows"], metrics["rows_max"]) == (5.0, 2.0)


def test_tokens_that_a_step_read_are_counted_over_its_epochs(engine: Engine) -> None:
    # 5 and 4 tokens, prompts included, three times
    metrics = learner_of(engine, Scripted([1.0, 1.0, 1.0])).step(BATCH)
    assert metrics["train/num_tokens"] == 27.0


def test_epochs_are_those_of_the_kind_of_batch(engine: Engine) -> None:
    learner = learner_of(engine, PPO(PPO.Config(num_epochs=3)))
    learner.step(BATCH)
    assert engine.num_updates == 1
    learner.step(experience_of(UNEVEN))
    assert engine.num_updates == 4


def test_of_maxima_the_largest_epoch_is_reported(engine: Engine) -> None:
    objective = Scripted([1.0, 1.0], [{"a_max": 3.0}, {"a_max": 1.0}])
    assert learner_of(engine, objective).step(BATCH)["a_max"] == 3.0


class Breaking(PPO):
    """PPO whose loss is not finite at chosen calls."""

    def __init__(self, num_epochs: int, *calls: int) -> None:
        super().__init__(PPO.Config(num_epochs=num_epochs))
        self.calls = calls
        self.num_calls = 0

    def loss(self, forward: Any, batch: Experience, context: StepContext) -> LossTerm:
        term = super().loss(forward, batch, context)
        broken = self.num_calls in self.calls
        self.num_calls += 1
        return replace(term, loss=term.loss / 0.0) if broken else term


@EVERY_STAGE
@pytest.mark.parametrize("calls", [(0,), (1,), (2,), (0, 2)])
def test_an_update_that_broke_at_any_micro_batch_leaves_no_gradient(
    zero_stage: int, calls: tuple[int, ...]
) -> None:
    weights = []
    for attack in (Breaking(2, *calls), Breaking(1)):
        engine = tiny_engine(zero_stage=zero_stage, micro_batch_size=2)
        metrics = learner_of(engine, attack).step(experience_of(UNEVEN))
        assert engine.num_updates == 1
        weights.append(engine.weights())
    assert metrics["optim/skipped"] == 0.0
    assert largest_difference(*weights) == 0.0


def test_a_pass_that_broke_is_not_mended_by_a_good_one_after_it(engine: Engine) -> None:
    before = engine.weights()
    learner = learner_of(engine, Breaking(1, 0), TwoPasses(OnlineDefence.Config()))
    assert learner.step(experience_of(UNEVEN))["optim/skipped"] == 1.0
    assert largest_difference(before, engine.weights()) == 0.0


@EVERY_STAGE
def test_gradients_of_passes_add_up_under_every_stage(zero_stage: int) -> None:
    class Twice(GradientRecorder):
        def compute_gradients(
            self, gradient_pass: GradientPass, forward: Any, context: StepContext
        ) -> Metrics:
            return gradient_pass() | gradient_pass()

    once, twice = GradientRecorder(), Twice()
    for recorder in (once, twice):
        engine = tiny_engine(zero_stage=zero_stage, micro_batch_size=2)
        learner_of(engine, LanguageModel(), recorder).step(UNEVEN)
    assert float(once.gradients["policy.model.norm.weight"].norm()) > 0
    for name, gradient in once.gradients.items():
        torch.testing.assert_close(twice.gradients[name], 2 * gradient)


class Remembering(OnlineDefence):
    """Has a state of its own."""

    def __init__(self) -> None:
        super().__init__(OnlineDefence.Config())
        self.state: dict[str, Tensor | float] = {}

    def state_dict(self) -> dict[str, Tensor | float]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = dict(state)


def test_a_resumed_learner_has_the_state_of_attack_and_defence(engine: Engine) -> None:
    attack, defence = PPO(PPO.Config()), Remembering()
    attack.kl.update(30.0, 8)
    defence.state = {"multiplier": 2.0, "anchor": torch.ones(2)}
    state = learner_of(engine, attack, defence).state_dict()
    fresh, fresh_defence = PPO(PPO.Config()), Remembering()
    learner_of(engine, fresh, fresh_defence).load_state_dict(state)
    assert fresh.kl.value == attack.kl.value != 0.2
    assert fresh_defence.state == defence.state


def test_a_resumed_learner_goes_on_counting_broken_updates(engine: Engine) -> None:
    broken = learner_of(engine, Scripted([float("nan")] * 2))
    broken.step(BATCH)
    resumed = learner_of(engine, Scripted([float("nan")]))
    resumed.load_state_dict(broken.state_dict())
    with pytest.raises(SamplingFailed):
        resumed.step(BATCH)
