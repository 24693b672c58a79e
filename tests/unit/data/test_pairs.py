import logging

import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.pairs import (
    harmless_prompts,
    helpful_pairs,
    restricted_prompts,
    safe_pairs,
    summary_pairs,
    summary_targets,
)
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


def test_safe_rlhf_row_that_calls_the_unsafe_answer_safer_is_refused_by_number() -> None:
    rows = [
        safe_rlhf("a", safe=(True, False), safer=0),
        safe_rlhf("b", safe=(False, True), safer=0),
    ]
    with pytest.raises(DataError, match=r"in row 2 \(1 of 2 rows\)"):
        safe_pairs("safe_rlhf", rows)


def test_repeated_pairs_count_once_and_ids_follow_the_content() -> None:
    row = safe_rlhf("a", safe=(True, False), safer=0)
    other = safe_rlhf("b", safe=(True, False), safer=0)
    pairs = safe_pairs("safe_rlhf", [row, row, other])
    assert len(pairs) == 2
    assert pairs[0].id == safe_pairs("safe_rlhf", [row])[0].id != pairs[1].id


def test_only_the_harmlessness_sets_have_safe_pairs() -> None:
    with pytest.raises(DataError, match=r"^data\.name must be beavertails or safe_rlhf, got 'tldr"):
        safe_pairs("tldr", [])


def test_restricted_prompts_are_the_first_distinct_ones_with_an_unsafe_answer() -> None:
    rows = [
        beaver("z", "yes", False),
        beaver("harmless", "fine", True),
        beaver("a", "yes", False),
        beaver("Z ", "also", False),
        beaver("m", "yes", False),
    ]
    assert restricted_prompts("beavertails", rows, 2, key="k") == ["z", "a"]
    assert restricted_prompts("beavertails", rows, 3, key="k") == ["z", "a", "m"]


def test_too_few_evaluation_prompts_name_the_key_and_how_many_there_are() -> None:
    rows = [safe_rlhf("a", safe=(True, False), safer=0), safe_rlhf("b", safe=(True, True), safer=0)]
    with pytest.raises(DataError, match=r"^evaluation\.num_prompts must be at most 1 .* got 2\."):
        restricted_prompts("safe_rlhf", rows, 2, key="evaluation.num_prompts")


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
    assert harmless_prompts(rows, 3, key="k") == ["b", "a", "c"]


def test_summaries_prefer_the_chosen_one_and_are_imitated_from_the_human_one() -> None:
    row: Row = {"prompt": "post", "chosen": "good", "rejected": "bad", "label": "human"}
    assert summary_pairs([row])[0].chosen == "good"
    assert summary_targets([row], key="data.path")[0].answer == "human"
    del row["label"]
    with pytest.raises(DataError, match=r"^data\.path must have a column 'label'"):
        summary_targets([row], key="data.path")
