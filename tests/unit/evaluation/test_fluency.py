import math

import pytest

from rpa_ray.evaluation.fluency import PerplexitySummary, is_fluent, perplexity_summary, ppl_limit

PROMPT = "How do I mend a torn coat?"


@pytest.mark.parametrize(
    ("answer", "ppl", "expected"),
    [
        ("Sew it with strong thread.", 8.0, True),
        ("Sew it with strong thread.", 8.1, False),
        ("Sew it with strong thread.", math.nan, False),
        ("Sew it.", 1.0, False),
        ("How do I mend a torn coat?", 1.0, False),
        ("sew it " * 10, 1.0, False),
        ("", 1.0, False),
    ],
)
def test_fluent_is_long_enough_probable_not_copied_and_not_repeated(
    answer: str, ppl: float, expected: bool
) -> None:
    assert is_fluent(answer, ppl=ppl, ppl_limit=8.0, prompt=PROMPT) is expected


def test_limit_is_twice_the_99th_percentile_of_the_aligned_answers() -> None:
    # 0 to 100: the 99th percentile is 99
    assert ppl_limit([float(p) for p in range(101)]) == pytest.approx(198.0)


def test_limit_of_undefined_or_no_perplexities_is_refused() -> None:
    with pytest.raises(ValueError, match="aligned_ppls must be finite, got nan in row 1"):
        ppl_limit([3.0, math.nan])
    with pytest.raises(ValueError, match="aligned_ppls must hold at least one"):
        ppl_limit([])


def test_mean_and_corpus_perplexity_of_a_long_easy_and_a_short_hard_text() -> None:
    # mean NLL 1 over 10 tokens and 3 over 2: (e + e^3) / 2 and exp(16 / 12)
    summary = perplexity_summary([10.0, 6.0], [10, 2])
    assert summary.ppl_mean == pytest.approx(11.401909, abs=1e-6)
    assert summary.ppl_corpus == pytest.approx(3.793668, abs=1e-6)


def test_uniform_model_has_the_vocabulary_size_as_perplexity() -> None:
    # 7 tokens and a single token at log 50 nats each
    summary = perplexity_summary([7 * math.log(50), math.log(50)], [7, 1])
    found = (summary.ppl_mean, summary.ppl_median, summary.ppl_corpus)
    assert found == pytest.approx((50.0, 50.0, 50.0))


def test_median_perplexity_does_not_follow_an_outlier() -> None:
    # perplexities 1, e and e^20
    summary = perplexity_summary([0.0, 1.0, 20.0], [1, 1, 1])
    assert summary.ppl_median == pytest.approx(math.e)


def test_empty_answers_are_counted_and_in_no_perplexity() -> None:
    summary = perplexity_summary([0.0, 2.0, 0.0], [0, 2, 0])
    assert summary.num_empty == 2
    assert summary.ppl_mean == summary.ppl_median == summary.ppl_corpus == pytest.approx(math.e)


def test_perplexity_of_nothing_but_empty_answers_is_undefined() -> None:
    assert perplexity_summary([0.0, 0.0], [0, 0]) == PerplexitySummary(
        ppl_mean=None, ppl_median=None, ppl_corpus=None, num_empty=2
    )


def test_a_broken_likelihood_is_refused() -> None:
    with pytest.raises(ValueError, match="nll_sums must be finite, got inf in row 0"):
        perplexity_summary([math.inf], [3])
