import math

import pytest

from rpa_ray.evaluation.summarisation import rouge1, summary_metrics


@pytest.mark.parametrize(
    ("summary", "reference", "expected"),
    [
        # 4 shared words of 5 and 6: 2 * 4 / 11.
        ("The cat sat down there.", "the cat had sat down, alone", 8 / 11),
        # "a" stands twice in one and three times in the other: 2 shared of 3 and 4.
        ("a a b", "a a a c", 4 / 7),
        ("same words", "Words, same!", 1.0),
        ("mend", "mending", 0.0),
        ("", "a word", 0.0),
        ("...", "!", 0.0),
    ],
)
def test_rouge1_is_the_f1_of_shared_words(summary: str, reference: str, expected: float) -> None:
    assert rouge1(summary, reference) == pytest.approx(expected)


def test_every_summary_metric_has_its_number_and_its_count() -> None:
    found = summary_metrics(
        ["one two", "", "one two three four"],
        ["one two", "one", "four five"],
        rewards=[1.0, -4.0, 0.0],
        perplexities=[2.0, math.nan, 6.0],
        items=["kite", "lamp", "soup"],
        num_resamples=100,
    )
    # ROUGE-1 1, 0 and 2 * 1 / 6.
    assert found["rouge1"].mean == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert 0.0 <= found["rouge1"].ci_low < found["rouge1"].ci_high <= 1.0
    assert found["summary_reward"].mean == -1.0
    assert found["length_words"].mean == 2.0
    assert (found["summary_ppl_median"].mean, found["summary_ppl_median"].n) == (4.0, 2)
    assert [found[name].n for name in ("rouge1", "summary_reward", "length_words")] == [3, 3, 3]


def test_a_model_that_writes_nothing_has_no_perplexity() -> None:
    found = summary_metrics(
        [""], ["a"], rewards=[0.0], perplexities=[math.nan], items=["kite"], num_resamples=100
    )
    assert "summary_ppl_median" not in found


def test_posts_about_one_item_are_one_in_every_interval() -> None:
    found = summary_metrics(
        ["a", "b", "c", "d"],
        ["a", "a", "c", "c"],
        rewards=[0.0, 1.0, 2.0, 3.0],
        perplexities=[1.0, math.nan, 3.0, 4.0],
        items=["kite", "kite", "lamp", "lamp"],
        num_resamples=100,
    )
    assert {name: (one.n, one.num_items) for name, one in found.items()} == {
        "rouge1": (4, 2),
        "summary_reward": (4, 2),
        "length_words": (4, 2),
        "summary_ppl_median": (3, 2),
    }
