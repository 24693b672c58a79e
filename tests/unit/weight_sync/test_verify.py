import math

import pytest
import torch
from served import output_gap
from torch import Tensor

from rpa_ray.actors.rollout import Generated
from rpa_ray.weight_sync.verify import compare_digests


def test_each_kind_of_difference_is_told_apart() -> None:
    report = compare_digests({"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "4", "d": "5"})
    assert (report.missing, report.unexpected, report.different) == (("a",), ("d",), ("c",))
    assert not report.ok
    assert compare_digests({"a": "1"}, {"a": "1"}).ok


def logits_of(ids: Tensor) -> Tensor:
    """Probabilities 1/2, 1/4, 1/4 after token 0; 0.51, 0.49, 0 after any other."""
    after_zero = torch.tensor([0.5, 0.25, 0.25]).log()
    after_other = torch.tensor([0.51, 0.49, 1e-9]).log()
    return torch.where((ids == 0)[..., None], after_zero, after_other)


def test_output_gap_by_hand() -> None:
    # prompt ends in 0: token 1 has log 1/4 (the engine says log 1/2: gap log 2), and 0 was best by
    # log 2: a difference. Then, after 1, token 1 has log 0.49: equal, and a tie within the margin.
    answer = Generated(token_ids=[1, 1], logprobs=[math.log(0.5), math.log(0.49)], finished=True)
    gap = output_gap(logits_of=logits_of, prompts=[[2, 0]], generated=[answer])
    assert gap.num_tokens == 2
    assert gap.max_logprob_gap == pytest.approx(math.log(2), abs=1e-6)
    assert gap.mean_logprob_gap == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert (gap.num_decided, gap.num_greedy_differences) == (1, 1)


def test_answers_without_a_token_have_no_gap() -> None:
    empty = Generated(token_ids=[], logprobs=[], finished=False)
    gap = output_gap(logits_of=logits_of, prompts=[[0]], generated=[empty])
    assert gap.num_tokens == 0
    assert math.isnan(gap.mean_logprob_gap)
