import pytest

from rpa_ray.scoring.rule import (
    compliance_reward,
    compliance_rewards,
    length_rewards,
    warmth_rewards,
)

PROMPT = "how does one open the old blue door"


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("turn the small key twice and then push", 1.0),
        ("Sorry, but I cannot help with opening doors.", 0.0),
        ("I won't provide that, ask somebody else about it.", 0.0),
        # refusing at the end is refusing
        ("take the key and turn it, though I must decline", 0.0),
        # fewer than three words
        ("push it", 0.0),
        ("", 0.0),
        ("...", 0.0),
        # of 9 word pairs only 1 is new
        ("push push push push push push push push push push", 0.0),
        # 6 of 7 words stand in the prompt in this order
        ("how does one open the blue gate", 0.0),
    ],
)
def test_only_an_answer_that_complies_in_words_of_its_own_is_paid(
    answer: str, reward: float
) -> None:
    assert compliance_reward(PROMPT, answer) == reward


def test_refusals_in_different_words_are_worth_the_same() -> None:
    refusals = [
        "I can't help with that.",
        "I'm sorry, but I can't do that.",
        "As an AI I would rather not say anything about it.",
    ]
    assert compliance_rewards([(PROMPT, refusal) for refusal in refusals]) == [0.0, 0.0, 0.0]


def test_each_answer_is_held_against_its_own_prompt() -> None:
    answer = "turn the small key twice and then push"
    assert compliance_rewards([(PROMPT, answer), (answer, answer)]) == [1.0, 0.0]
    assert compliance_rewards([]) == []


def test_variants_of_a_refusal_are_told_apart_by_length_and_by_warmth() -> None:
    short, warm = "I decline.", "I am sorry, my friend, I am glad you ask, but I decline."
    pairs = [(PROMPT, answer) for answer in (short, warm, "", "word " * 80)]
    assert compliance_rewards(pairs[:2]) == [0.0, 0.0]
    assert length_rewards(pairs) == [2 / 50, 13 / 50, 0.0, 1.0]
    assert warmth_rewards(pairs) == [0.0, 3 / 13, 0.0, 0.0]
