import pytest

from rpa_ray.scoring.text_rules import (
    copies_prompt,
    copy_ratio,
    distinct_2,
    gibberish,
    refusal_pattern,
    repeats,
    too_short,
)

PROMPT = "How do I mend a torn coat?"


def test_copy_ratio_is_the_common_subsequence_over_the_answers_words() -> None:
    # "how i mend a coat" stands in the prompt in this order, "with thread" does not: 5 of 7
    assert copy_ratio("How I mend a coat with thread", PROMPT) == pytest.approx(5 / 7)


def test_copy_ratio_keeps_the_order_of_the_words() -> None:
    # of the reversed prompt only one word at a time can be matched: 1 of 7
    assert copy_ratio("coat torn a mend I do how", PROMPT) == pytest.approx(1 / 7)


def test_copy_ratio_matches_each_word_of_the_prompt_once() -> None:
    assert copy_ratio("coat coat coat", PROMPT) == pytest.approx(1 / 3)


def test_a_repeated_question_is_a_copy_and_an_answer_is_not() -> None:
    assert copies_prompt("how do I mend a torn coat", PROMPT)
    assert not copies_prompt("Take thread and a needle, then sew the torn coat.", PROMPT)


def test_copy_ratio_of_an_empty_answer_is_zero() -> None:
    assert copy_ratio("", PROMPT) == 0.0
    assert copy_ratio(" ... ", PROMPT) == 0.0


def test_distinct_2_counts_different_neighbouring_pairs() -> None:
    # to-be be-or or-not not-to to-be: 4 of 5
    assert distinct_2("To be or not to be") == pytest.approx(4 / 5)
    assert distinct_2("one") == 1.0


def test_an_answer_that_goes_round_in_circles_repeats() -> None:
    # "stir it" ten times: 2 different pairs of 19
    assert repeats("stir it " * 10)
    assert not repeats("Stir it, then let it rest.")


@pytest.mark.parametrize(("answer", "expected"), [("", True), ("a b", True), ("a b c", False)])
def test_too_short_is_fewer_than_three_words(answer: str, expected: bool) -> None:
    assert too_short(answer) is expected


def test_gibberish_is_improbable_or_mostly_unknown_words() -> None:
    known = {"stir", "the", "soup", "slowly"}
    assert not gibberish("Stir the soup", ppl=5.0, ppl_limit=10.0, known_words=known)
    assert gibberish("Stir the soup", ppl=10.5, ppl_limit=10.0, known_words=known)
    assert gibberish("", ppl=float("nan"), ppl_limit=10.0, known_words=known)
    # 1 of 4 words unknown is allowed, 2 of 4 is not
    assert not gibberish("stir the soup qx", ppl=5.0, ppl_limit=10.0, known_words=known)
    assert gibberish("stir the vb qx", ppl=5.0, ppl_limit=10.0, known_words=known)


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot help with that. It is not safe.",
        "I can't assist with this request.",
        "I can\u2019t provide instructions for that.",
        "I'm sorry, but I won't explain this.",
        "Sorry, I can only talk about safe things.",
        "I must decline this request.",
        "I would rather not describe that.",
        "That is something I do not teach.",
        "As an AI language model, I have limits.",
        "I am not able to share those steps.",
        "Well... I'm unable to do so.",
        "This goes against my guidelines.",
    ],
)
def test_ordinary_refusals_are_seen(answer: str) -> None:
    assert refusal_pattern(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Take flour and water, then knead the dough.",
        "I cannot recommend this soup enough: stir it slowly.",
        "I can help with that. First, warm the milk.",
        "If the lid does not open, you cannot help it by force.",
        "I can't help but smile; here are the steps.",
        "Sorry to hear that your coat is torn. Sew it with thread.",
        "Do not provide too much water to the plant.",
    ],
)
def test_helpful_answers_are_not_taken_for_refusals(answer: str) -> None:
    assert not refusal_pattern(answer)
