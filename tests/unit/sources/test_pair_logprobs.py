import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from fakes import ONE_RANK, VOCAB_SIZE, forward_of, tiny_policy, uniform_forward
from torch import Tensor

from rpa_ray.data.collate import TokenRow
from rpa_ray.learner.ranks import Ranks
from rpa_ray.sources.pair_logprobs import MAX_ROWS, PairLogprobs
from rpa_ray.types import ModelOutputs

LOG_UNIFORM = -math.log(VOCAB_SIZE)


def row(num_answer_tokens: int, *, first: int = 5) -> TokenRow:
    """Return a prompt of two tokens and an answer of so many."""
    return TokenRow(
        ids=[1, 3, *(first + i % 8 for i in range(num_answer_tokens))],
        loss_mask=[False, False] + [True] * num_answer_tokens,
    )


SAFE = [row(1), row(2), row(3)]
UNSAFE = [row(4), row(2), row(7)]


class Counting:
    """A model that counts its passes and the rows of each."""

    def __init__(self, model: Any = uniform_forward) -> None:
        self.model = model
        self.sizes: list[int] = []

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
        self.sizes.append(len(input_ids))
        return self.model(input_ids, attention_mask)


def logprobs_of(
    safe: list[TokenRow], unsafe: list[TokenRow], model: Any, ranks: Ranks = ONE_RANK
) -> PairLogprobs:
    return PairLogprobs(
        safe, unsafe, model=model, ranks=ranks, pad_token_id=0, vocab_size=VOCAB_SIZE
    )


def test_an_answers_logprob_is_the_sum_over_its_own_tokens() -> None:
    found = logprobs_of(SAFE, UNSAFE, uniform_forward)
    pairs = [found.of_pair(i) for i in range(3)]
    expected = [(1, 4), (2, 2), (3, 7)]
    for (safe, unsafe), (num_safe, num_unsafe) in zip(pairs, expected, strict=True):
        assert safe == pytest.approx(num_safe * LOG_UNIFORM, rel=1e-6)
        assert unsafe == pytest.approx(num_unsafe * LOG_UNIFORM, rel=1e-6)


def test_a_margin_says_by_how_much_the_safe_answer_is_preferred() -> None:
    # 3, 0 and 4 tokens fewer, each worth log 24
    margins = logprobs_of(SAFE, UNSAFE, uniform_forward).margins()
    assert margins == pytest.approx([-3 * LOG_UNIFORM, 0.0, -4 * LOG_UNIFORM], abs=1e-5)


def test_answers_are_read_in_parts_and_padding_changes_nothing() -> None:
    safe = [row(1 + i % 5, first=3 + i % 7) for i in range(20)]
    unsafe = [row(1 + i % 9, first=4 + i % 6) for i in range(20)]
    model = Counting(forward_of(tiny_policy(value_head=False)))
    found = logprobs_of(safe, unsafe, model)
    together = [found.of_pair(i) for i in range(20)]
    assert model.sizes == [MAX_ROWS, 40 - MAX_ROWS]
    alone = [logprobs_of([safe[i]], [unsafe[i]], model.model).of_pair(0) for i in range(20)]
    for pair, expected in zip(together, alone, strict=True):
        assert pair == pytest.approx(expected, abs=1e-4)


def test_rows_are_read_singly_where_their_logits_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    together = logprobs_of(SAFE, UNSAFE, uniform_forward).margins()
    monkeypatch.setattr("rpa_ray.ops.logprobs.MAX_LOGIT_BYTES", 1)
    model = Counting()
    assert logprobs_of(SAFE, UNSAFE, model).margins() == pytest.approx(together)
    assert model.sizes == [1] * 6


def test_nothing_is_computed_before_it_is_asked_for_nor_twice() -> None:
    model = Counting()
    found = logprobs_of(SAFE, UNSAFE, model)
    assert model.sizes == []
    assert found.state_dict() == {}
    found.of_pair(0), found.of_pair(2), found.margins()
    assert model.sizes == [6]


def test_a_resumed_run_asks_the_model_nothing() -> None:
    earlier = logprobs_of(SAFE, UNSAFE, uniform_forward)
    earlier.margins()
    model = Counting()
    resumed = logprobs_of(SAFE, UNSAFE, model)
    resumed.load_state_dict(earlier.state_dict())
    assert resumed.margins() == earlier.margins()
    assert resumed.of_pair(2) == earlier.of_pair(2)
    assert model.sizes == []


def test_a_run_that_was_saved_before_the_first_use_computes_after_it() -> None:
    resumed = logprobs_of(SAFE, UNSAFE, uniform_forward)
    resumed.load_state_dict(logprobs_of(SAFE, UNSAFE, uniform_forward).state_dict())
    assert resumed.of_pair(0)[0] == pytest.approx(LOG_UNIFORM, rel=1e-6)


def test_ranks_share_the_work_and_all_have_the_whole() -> None:
    barrier = Barrier(2, timeout=30)
    boxes: dict[int, list[Any]] = {}

    class Threads(Ranks):
        """A rank among two threads."""

        def gather(self, values: list[Any]) -> list[list[Any]]:
            boxes[self.rank] = values
            barrier.wait()
            return [boxes[0], boxes[1]]

    # 5 pairs: 10 answers in turn over the ranks, none of them alike
    safe, unsafe = [row(1 + i) for i in range(5)], [row(6 + i) for i in range(5)]
    models = [Counting(), Counting()]

    def run(rank: int) -> list[tuple[float, float]]:
        ranks = Threads(rank=rank, size=2, device=torch.device("cpu"))
        found = logprobs_of(safe, unsafe, models[rank], ranks)
        return [found.of_pair(i) for i in range(5)]

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(run, range(2))
    alone = logprobs_of(safe, unsafe, uniform_forward)
    assert first == second
    for i, pair in enumerate(first):
        assert pair == pytest.approx(alone.of_pair(i))
    assert [model.sizes for model in models] == [[5], [5]]


def test_nothing_of_the_model_is_differentiated() -> None:
    found = logprobs_of(SAFE, UNSAFE, forward_of(tiny_policy(value_head=False)))
    found.margins()
    assert not found.state_dict()["logprobs"].requires_grad
