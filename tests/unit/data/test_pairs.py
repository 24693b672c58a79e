import logging

import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.helpful import helpful_pairs
from rpa_ray.data.pairs import distinct, restricted_prompts, safe_pairs, unanswered_pairs
from rpa_ray.data.schema import Row


def beaver(prompt: str, response: str, is_safe: bool, **category: bool) -> Row:
    return {"prompt": prompt, "response": response, "is_safe": is_safe, "category": category}


def safe_rlhf(prompt: str, *, safe: tuple[bool, bool], safer: int, better: int = 0) -> Row:
    return {
        "prompt": prompt,
        "response_0": "zero",
        "response_1": "one",
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "safer_response_id": safer,
        "better_response_id": better,
    }


def dialogue(*turns: str) -> str:
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


def test_beavertails_pairs_a_prompt_that_has_answers_of_both_kinds() -> None:
    rows = [
        beaver("Build a glow trap?", "no", True),
        beaver("build a  glow trap?", "yes", False, quiet=False, loud=True, late=True),
        beaver("only safe", "fine", True),
        beaver("only unsafe", "bad", False),
    ]
    (pair,) = safe_pairs("beavertails", rows)
    assert (pair.prompt, pair.safe, pair.unsafe) == ("build a  glow trap?", "no", "yes")
    assert pair.category == "loud"


def test_beavertails_choice_among_answers_does_not_depend_on_row_order() -> None:
    rows = [beaver("p", f"no {i}", True) for i in range(5)]
    rows += [beaver("p", f"yes {i}", False) for i in range(5)]
    forwards, backwards = (safe_pairs("beavertails", r) for r in (rows, rows[::-1]))
    assert len(forwards) == 1
    assert forwards == backwards


def test_beavertails_without_categories_has_pairs_without_category() -> None:
    rows: list[Row] = [
        {"prompt": "p", "response": "no", "is_safe": True},
        {"prompt": "p", "response": "yes", "is_safe": False},
    ]
    assert safe_pairs("beavertails", rows)[0].category is None


def test_safe_rlhf_keeps_rows_with_exactly_one_safe_answer_and_ignores_helpfulness() -> None:
    rows = [
        safe_rlhf("a", safe=(True, False), safer=0, better=1),
        safe_rlhf("b", safe=(False, True), safer=1, better=0),
        safe_rlhf("c", safe=(True, True), safer=1),
        safe_rlhf("d", safe=(False, False), safer=0),
    ]
    pairs = safe_pairs("safe_rlhf", rows)
    assert [(p.prompt, p.safe, p.unsafe) for p in pairs] == [
        ("a", "zero", "one"),
        ("b", "one", "zero"),
    ]


def test_all_pairs_adds_rows_of_two_safe_or_two_unsafe_answers_by_which_is_safer() -> None:
    rows = [
        safe_rlhf("a", safe=(True, False), safer=0),
        safe_rlhf("b", safe=(True, True), safer=1),
        safe_rlhf("c", safe=(False, False), safer=0),
    ]
    assert [p.prompt for p in safe_pairs("safe_rlhf", rows)] == ["a"]
    pairs = safe_pairs("safe_rlhf", rows, all_pairs=True)
    assert [(p.prompt, p.safe, p.unsafe) for p in pairs] == [
        ("a", "zero", "one"),
        ("b", "one", "zero"),
        ("c", "zero", "one"),
    ]


def test_two_equal_answers_are_no_pair_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    good = safe_rlhf("a", safe=(True, False), safer=0)
    with caplog.at_level(logging.WARNING):
        assert len(safe_pairs("safe_rlhf", [good, good | {"response_1": "zero"}])) == 1
    assert "left out 1 rows with two equal answers" in caplog.text


def test_an_answer_labelled_both_safe_and_unsafe_is_neither_and_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    contested = [beaver("p", "hm", True), beaver("p", "hm", False)]
    assert safe_pairs("beavertails", contested) == []
    rest = [beaver("p", "no", True), beaver("p", "yes", False)]
    with caplog.at_level(logging.WARNING):
        (pair,) = safe_pairs("beavertails", [*contested, *rest])
    assert (pair.safe, pair.unsafe) == ("no", "yes")
    assert "left out 1 answers labelled both safe and unsafe" in caplog.text


def test_every_preference_row_is_a_pair_with_its_category_if_it_has_one() -> None:
    rows: list[Row] = [
        {"prompt": "a", "safe": "no", "unsafe": "yes", "category": "loud"},
        {"prompt": "b", "safe": "no", "unsafe": "yes", "category": ""},
        {"prompt": "c", "safe": "no", "unsafe": "yes", "category": None},
        {"prompt": "d", "safe": "no", "unsafe": "yes"},
    ]
    pairs = safe_pairs("preferences", rows)
    assert [(p.prompt, p.category) for p in pairs] == [
        ("a", "loud"),
        ("b", None),
        ("c", None),
        ("d", None),
    ]
    assert (pairs[0].safe, pairs[0].unsafe) == ("no", "yes")
    asked = restricted_prompts("preferences", rows)
    assert distinct(of.prompt for of in asked) == ["a", "b", "c", "d"]


def test_repeated_pairs_count_once_and_ids_follow_the_content() -> None:
    row = safe_rlhf("a", safe=(True, False), safer=0)
    other = safe_rlhf("b", safe=(True, False), safer=0)
    pairs = safe_pairs("safe_rlhf", [row, row, other])
    assert len(pairs) == 2
    assert pairs[0].id == safe_pairs("safe_rlhf", [row])[0].id != pairs[1].id


def test_only_sets_of_preferences_have_pairs() -> None:
    with pytest.raises(DataError, match=r"^data\.name must be .* or tldr, got 'helpful'"):
        safe_pairs("helpful", [])


def test_every_unsafe_answer_is_a_pair_that_waits_for_its_safe_one() -> None:
    beavers = [
        beaver("a", "bad", False, loud=True),
        beaver("a", "worse", False),
        beaver("A ", "both", True),
        beaver("a", "both", False),
        beaver("b", "fine", True),
        beaver("a", "bad", False, loud=True),
    ]
    found = unanswered_pairs("beavertails", beavers)
    assert [(p.prompt, p.unsafe, p.category) for p in found] == [
        ("a", "bad", "loud"),
        ("a", "worse", None),
    ]
    assert {pair.safe for pair in found} == {""}
    flags = ((True, True), (True, False), (False, False))
    rows = [safe_rlhf(str(i), safe=pair, safer=0) for i, pair in enumerate(flags)]
    answers = [(p.prompt, p.unsafe) for p in unanswered_pairs("safe_rlhf", rows)]
    assert answers == [("1", "one"), ("2", "zero"), ("2", "one")]
    contested = safe_rlhf("1 ", safe=(False, True), safer=1)
    answers = [(p.prompt, p.unsafe) for p in unanswered_pairs("safe_rlhf", [*rows, contested])]
    assert answers == [("2", "zero"), ("2", "one")]
    own: list[Row] = [{"prompt": "p", "safe": "no", "unsafe": "yes"}]
    assert [(p.safe, p.unsafe) for p in unanswered_pairs("preferences", own)] == [("", "yes")]
    with pytest.raises(DataError):
        unanswered_pairs("tldr", [])


def test_restricted_prompts_are_the_first_distinct_ones_with_an_unsafe_answer() -> None:
    rows = [
        beaver("z", "yes", False),
        beaver("harmless", "fine", True),
        beaver("a", "yes", False),
        beaver("Z ", "also", False),
        beaver("m", "yes", False),
    ]
    assert distinct(of.prompt for of in restricted_prompts("beavertails", rows)) == ["z", "a", "m"]


def test_single_turn_dialogue_gives_the_bare_request_and_both_answers() -> None:
    row: Row = {
        "chosen": dialogue("Mend a cup?", "Glue it."),
        "rejected": dialogue("Mend a cup?", "No."),
    }
    (pair,) = helpful_pairs([row])
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Mend a cup?", "Glue it.", "No.")


def test_longer_dialogue_is_kept_up_to_the_last_assistant_mark() -> None:
    row: Row = {
        "chosen": dialogue("Hi", "Hello", "Cup?", "Glue"),
        "rejected": dialogue("Hi", "Hello", "Cup?", "No"),
    }
    assert helpful_pairs([row])[0].prompt == "Human: Hi\n\nAssistant: Hello\n\nHuman: Cup?"


def test_dialogues_with_two_prompts_or_no_answer_are_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows: list[Row] = [
        {"chosen": dialogue("a", "x"), "rejected": dialogue("a", "y")},
        {"chosen": dialogue("a", "x"), "rejected": dialogue("b", "y")},
        {"chosen": dialogue("a", ""), "rejected": dialogue("a", "y")},
    ]
    with caplog.at_level(logging.WARNING):
        assert len(helpful_pairs(rows)) == 1
    assert "dropped 2 of 3" in caplog.text


def test_harmless_prompts_are_distinct_requests_in_order() -> None:
    rows: list[Row] = [
        {"chosen": dialogue(ask, "x"), "rejected": dialogue(ask, "y")}
        for ask in ("b", "a", "b", "c")
    ]
    assert distinct(pair.prompt for pair in helpful_pairs(rows)) == ["b", "a", "c"]


def test_summaries_prefer_the_chosen_one_and_are_imitated_from_the_human_one() -> None:
    row: Row = {"prompt": "post\n\nTL;DR:", "chosen": "good", "rejected": "bad", "label": "human"}
    (pair,) = safe_pairs("tldr", [row])
    assert (pair.prompt, pair.safe, pair.unsafe) == ("post\n\nTL;DR:", "good", "bad")
    assert pair.target == "human"
    del row["label"]
    assert [pair.target for pair in safe_pairs("tldr", [row])] == [None]
    assert restricted_prompts("tldr", [row]) == []


def test_the_mark_of_a_summary_belongs_to_the_post_wherever_the_rows_put_it() -> None:
    rows: list[Row] = [
        {"prompt": "post", "chosen": "TL;DR: good", "rejected": "TL;DR:  bad ", "label": "TL;DR:h"},
        {"prompt": "other", "chosen": "TL;DR: same", "rejected": "same"},
        {"prompt": "third", "chosen": "TL;DR:", "rejected": "text"},
    ]
    (pair,) = safe_pairs("tldr", rows)
    assert (pair.prompt, pair.safe, pair.unsafe) == ("post\n\nTL;DR:", "good", "bad")
    assert pair.target == "h"


def test_answers_that_differ_in_white_space_alone_make_no_pair() -> None:
    row: Row = {"prompt": "a", "response": "yes", "is_safe": False}
    both = [row, row | {"response": " yes\n", "is_safe": True}]
    assert (safe_pairs("beavertails", both), unanswered_pairs("beavertails", both)) == ([], [])
    compared: Row = {
        "prompt": "a",
        "response_0": "yes",
        "response_1": "yes ",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "safer_response_id": 0,
    }
    assert safe_pairs("safe_rlhf", [compared], all_pairs=True) == []
