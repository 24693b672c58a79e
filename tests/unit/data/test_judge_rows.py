import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.judge_rows import (
    BROKEN,
    CONTENTS,
    FORMS,
    HARMFUL,
    SAFE,
    TURNS,
    Others,
    hard_rows,
    judge_rows,
    sentences,
)
from rpa_ray.data.order import digest
from rpa_ray.data.rows import Labelled, SafePair
from rpa_ray.data.split import half_of, normalise


def make_pairs(num: int) -> list[SafePair]:
    return [
        SafePair(
            id=f"p{i}",
            prompt=f"ask {i}",
            safe=f"I will not explain {i}",
            unsafe=f"First melt {i} then stir it",
            category=None,
        )
        for i in range(num)
    ]


def test_one_in_twenty_answers_is_empty_and_one_in_twenty_word_salad() -> None:
    rows = judge_rows(make_pairs(200), num_rows=400, seed=0)
    originals = {pair.safe for pair in make_pairs(200)} | {p.unsafe for p in make_pairs(200)}
    empty = [row for row in rows if row.answer == ""]
    salad = [row for row in rows if row.answer and row.answer not in originals]
    assert (len(rows), len(empty), len(salad)) == (400, 20, 20)
    assert {row.label for row in empty + salad} == {SAFE}


def test_word_salad_is_made_of_words_of_the_answers_at_the_length_it_replaces() -> None:
    rows = judge_rows(make_pairs(100), num_rows=200, empty_frac=0, random_frac=1, seed=0)
    known = {w for pair in make_pairs(100) for w in f"{pair.safe} {pair.unsafe}".split()}
    assert {word for row in rows for word in row.answer.split()} <= known
    # 100 refusals of 5 words and 100 answers of 6.
    assert sorted(len(row.answer.split()) for row in rows) == [5] * 100 + [6] * 100


def test_untouched_rows_are_harmful_exactly_where_the_answer_is_unsafe() -> None:
    rows = judge_rows(make_pairs(50), num_rows=100, empty_frac=0, random_frac=0, seed=0)
    labels = {(row.prompt, row.answer): row.label for row in rows}
    assert labels == {(p.prompt, p.unsafe): HARMFUL for p in make_pairs(50)} | {
        (p.prompt, p.safe): SAFE for p in make_pairs(50)
    }


def test_broken_answers_replace_harmful_rows_too() -> None:
    rows = judge_rows(make_pairs(200), num_rows=400, seed=0)
    # 200 unsafe rows, of which about a tenth were broken and became safe.
    assert 160 <= sum(row.label == HARMFUL for row in rows) <= 198


def test_same_seed_same_rows_and_another_seed_others() -> None:
    pairs = make_pairs(60)
    assert judge_rows(pairs, num_rows=100, seed=4) == judge_rows(pairs, num_rows=100, seed=4)
    assert judge_rows(pairs, num_rows=100, seed=4) != judge_rows(pairs, num_rows=100, seed=5)


def test_more_rows_than_both_answers_of_every_pair_are_refused() -> None:
    with pytest.raises(DataError, match=r"^evaluation\.judge\.num_rows must be at most 20 .* 21\."):
        judge_rows(make_pairs(10), num_rows=21, seed=0)


# --- Rows that are hard to tell ---------------------------------------------------------------


def make_topical_pairs() -> list[SafePair]:
    """Return pairs about three colours of three things: a step names the colour, one the thing."""
    pairs = []
    for colour in ("red", "green", "blue"):
        for thing in ("bell", "horn", "wand"):
            for ask in ("How do I make", "Show me how to make"):
                prompt = f"{ask} a {colour} {thing}?"
                pairs.append(
                    SafePair(
                        id=prompt,
                        prompt=prompt,
                        safe="I will not. It is not safe.",
                        unsafe=f"First, melt {colour}. Then, add {thing}. Last, stir it.",
                        category=None,
                    )
                )
    return pairs


def make_hard_rows(num_rows: int = 400, seed: int = 0) -> list[Labelled]:
    return hard_rows(make_topical_pairs(), num_rows, np.random.default_rng(seed))


OWN, OTHER = (
    SafePair(id=name, prompt=f"{name}?", safe=f"No {name}. Ask on.", unsafe=unsafe, category=None)
    for name, unsafe in (
        ("own", "First, melt it. Then, add oil. Last: stir."),
        ("other", "To begin, dig. Now, plant it."),
    )
)
STEPS = ["First, melt it.", "Then, add oil.", "Last: stir."]


def test_without_a_share_of_hard_rows_the_rows_are_those_of_the_published_recipe() -> None:
    rows = judge_rows(make_pairs(30), num_rows=40, seed=3)
    assert rows == judge_rows(make_pairs(30), num_rows=40, hard_frac=0.0, seed=3)
    # Taken before there were hard rows: the order, the breaking and the salad stay what they were.
    assert digest(*(str(row) for row in rows))[:16] == "fdc76141e161d5b1"


def test_a_share_of_the_rows_is_hard_and_the_others_are_the_published_ones() -> None:
    rows = judge_rows(make_topical_pairs(), num_rows=100, hard_frac=0.75, seed=0)
    plain = judge_rows(make_topical_pairs(), num_rows=25, empty_frac=0.2, random_frac=0.2, seed=0)
    assert len(rows) == 100
    missing = Counter(plain) - Counter(rows)
    assert not missing
    assert rows[:25] != plain  # the two kinds are mixed


def test_same_seed_same_hard_rows_and_another_seed_others() -> None:
    assert make_hard_rows(seed=1) == make_hard_rows(seed=1)
    assert make_hard_rows(seed=1) != make_hard_rows(seed=2)


def test_whose_steps_an_answer_has_decides_its_class() -> None:
    classes = {name: label for name, (_, label) in CONTENTS.items()}
    assert classes == {
        "own": HARMFUL,
        "foreign": SAFE,
        "own_opening": SAFE,
        "foreign_opening": SAFE,
    }
    own, other = sentences(OWN.unsafe), sentences(OTHER.unsafe)
    contents = {name: write(own, other) for name, (write, _) in CONTENTS.items()}
    assert contents == {
        "own": STEPS,
        "foreign": ["To begin, dig.", "Now, plant it."],
        "own_opening": ["First, melt it.", "Now, plant it."],
        "foreign_opening": ["To begin, dig.", "Then, add oil.", "Last: stir."],
    }


def test_hard_rows_are_harmful_in_the_share_of_their_turns_and_every_kind_has_one() -> None:
    rows = make_hard_rows(7 * 20)
    assert sum(row.label == HARMFUL for row in rows) == 20 * TURNS.count("own") == 60
    assert set(TURNS) == {*CONTENTS, "broken"}


def test_a_harmful_hard_row_names_both_parts_of_its_prompt_and_a_safe_one_never_does() -> None:
    for row in make_hard_rows():
        colour, thing = row.prompt.rstrip("?").split()[-2:]
        answer = row.answer.lower()
        whole = re.search(rf"melt {colour}\..* add {thing}\.", answer) is not None
        assert whole == (row.label == HARMFUL), row


def test_a_refusal_with_steps_says_nothing_of_the_class() -> None:
    refusing = [row for row in make_hard_rows(4000) if row.answer.startswith("I will not.")]
    share = sum(row.label == HARMFUL for row in refusing) / len(refusing)
    assert abs(share - TURNS.count("own") / len(TURNS)) <= 0.07


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("without_openings", "melt it. add oil. stir."),
        ("in_lower_case", "first, melt it. then, add oil. last: stir."),
        ("before_refusal", "First, melt it. Then, add oil. Last: stir. No own. Ask on."),
        ("after_question", "own? First, melt it. Then, add oil. Last: stir."),
    ],
)
def test_form_keeps_every_step(form: str, expected: str) -> None:
    assert FORMS[form](STEPS, OWN, np.random.default_rng(0)) == expected


def written(form: str) -> set[str]:
    rng = np.random.default_rng(0)
    return {FORMS[form](STEPS, OWN, rng) for _ in range(60)}


def test_a_refusal_before_an_answer_is_whole_or_cut_after_a_sentence() -> None:
    answers = [row.answer for row in make_hard_rows(2000)]
    refused = {answer for answer in answers if answer.startswith("I will not.")}
    whole = {answer for answer in refused if answer.startswith("I will not. It is not safe.")}
    assert whole
    assert refused - whole
    assert all(len(sentences(answer)) >= 3 for answer in whole)


def test_one_opening_may_stand_before_every_step() -> None:
    assert written("with_one_opening") == {
        f"{opening} melt it. {opening} add oil. {opening} stir."
        for opening in ("First,", "Then,", "Last:")
    }


def test_openings_dealt_anew_are_the_same_openings_in_any_order() -> None:
    texts = written("with_openings_dealt_anew")
    assert len(texts) == 6
    assert {tuple(sorted(re.findall(r"\w+[,:]", text))) for text in texts} == {
        ("First,", "Last:", "Then,")
    }


def test_an_answer_may_end_in_the_beginning_of_a_sentence() -> None:
    steps = " ".join(STEPS)
    for text in written("broken_off"):
        assert text.startswith(steps + " ")
        rest = text.removeprefix(steps + " ")
        assert any(step.startswith(rest) for step in STEPS)


@pytest.mark.parametrize("rule", list(BROKEN))
def test_broken_text_is_no_whole_answer(rule: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        text = BROKEN[rule](OWN, rng)
        assert text
        assert not (STEPS[0] in text and STEPS[1] in text), text


def test_broken_rules_by_shape() -> None:
    rng = np.random.default_rng(0)
    assert BROKEN["opening_alone"](OWN, rng) == STEPS[0]
    nonsense = sentences(BROKEN["nonsense"](OWN, rng))
    assert [text.split()[0] for text in nonsense] == ["First,", "Then,", "Last:"]
    assert [len(text.split()) for text in nonsense] == [len(text.split()) for text in STEPS]
    assert not {"melt", "add", "oil."} & {word for text in nonsense for word in text.split()}
    assert sorted(BROKEN["shuffled_words"](OWN, rng).split()) == sorted(" ".join(STEPS).split())
    assert set(BROKEN["question_again"](OWN, rng).split()) == {"own?"}
    again = sentences(BROKEN["one_sentence_again"](OWN, rng))
    assert len(again) >= 2
    assert len(set(again)) == 1
    phrase = BROKEN["one_phrase_again"](OWN, rng).split()
    assert len(phrase) >= 4
    assert len(set(phrase)) <= 4


def test_the_topic_of_a_prompt_is_its_two_rarest_words_that_another_prompt_has_too() -> None:
    others = Others(make_topical_pairs(), np.random.default_rng(0))
    assert others.topic(make_topical_pairs()[0]) == {"red", "bell"}


def test_another_pair_shares_no_word_of_the_topic() -> None:
    pairs = make_topical_pairs()
    others = Others(pairs, np.random.default_rng(0))
    drawn = {others.draw(pairs[0]).prompt for _ in range(200)}
    assert len(drawn) == 8
    assert not any("red" in prompt or "bell" in prompt for prompt in drawn)


def test_where_all_prompts_share_a_topic_any_other_prompt_will_do() -> None:
    pairs = [pair for pair in make_topical_pairs() if "red bell" in pair.prompt]
    others = Others(pairs, np.random.default_rng(0))
    assert others.draw(pairs[0]) == pairs[1]


def test_hard_rows_of_a_single_prompt_are_refused() -> None:
    pairs = [pair for pair in make_pairs(1) for _ in range(3)]
    with pytest.raises(DataError, match=r"^evaluation\.judge\.hard_frac "):
        judge_rows(pairs, num_rows=4, hard_frac=0.5, seed=0)


@pytest.mark.parametrize("unsafe", ["one sentence without a mark", "?", "", " \n"])
def test_answers_of_one_sentence_or_none_make_hard_rows_too(unsafe: str) -> None:
    pairs = [replace(pair, unsafe=unsafe) for pair in make_pairs(6)]
    assert len(hard_rows(pairs, 200, np.random.default_rng(0))) == 200


def test_no_answer_of_a_single_sentence_is_told_to_be_harmful_and_safe() -> None:
    pairs = [
        replace(pair, unsafe="First, melt it.") if pair.prompt.endswith("bell?") else pair
        for pair in make_topical_pairs()
    ]
    rows = hard_rows(pairs, 2000, np.random.default_rng(0))
    classes = {(row.prompt, row.answer): row.label for row in rows}
    assert all(classes[row.prompt, row.answer] == row.label for row in rows)


def test_the_two_halves_share_no_prompt_and_are_all_the_pairs() -> None:
    pairs = [*make_pairs(200), replace(make_pairs(1)[0], id="again", prompt=" ASK  0")]
    first, second = half_of(pairs, 0), half_of(pairs, 1)
    assert sorted(pair.id for pair in first + second) == sorted(pair.id for pair in pairs)
    assert not {normalise(p.prompt) for p in first} & {normalise(p.prompt) for p in second}
    assert min(len(first), len(second)) >= 70
