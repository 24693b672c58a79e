import math

import pytest

from rpa_ray.evaluation.fluency import is_fluent, ppl_limit

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


def test_limit_is_twice_the_99th_percentile_of_the_texts_given() -> None:
    # 0 to 100: the 99th percentile is 99
    assert ppl_limit([float(p) for p in range(101)]) == pytest.approx(198.0)


def test_limit_of_undefined_or_no_perplexities_is_refused() -> None:
    with pytest.raises(ValueError, match="reference_ppls must be finite, got nan in row 1"):
        ppl_limit([3.0, math.nan])
    with pytest.raises(ValueError, match="reference_ppls must hold at least one"):
        ppl_limit([])
