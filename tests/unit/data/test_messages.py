"""Chat messages in the columns of prompts and answers, as TRL and the Hub have them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.load import load_train_and_test
from rpa_ray.data.schema import Row


def user(text: object) -> Row:
    return {"role": "user", "content": text}


def assistant(text: object) -> Row:
    return {"role": "assistant", "content": text}


def read(tmp_path: Path, row: Row, name: str = "preferences", **columns: str) -> Row:
    """Return what becomes of a row, the same from JSON lines and from parquet."""
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "mine.parquet")
    found = []
    for file in ("mine.jsonl", "mine.parquet"):
        train, test = load_train_and_test(
            name, str(tmp_path / file), path_key="data.path", columns=columns
        )
        found += train + test
    assert found[0] == found[1]
    return found[0]


def refusal(tmp_path: Path, row: Row, name: str = "preferences", **columns: str) -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, row, name, **columns)
    return str(error.value)


EXPLICIT: Row = {
    "prompt": [user("ask")],
    "chosen": [assistant("no")],
    "rejected": [assistant("yes")],
}
IMPLICIT: Row = {
    "chosen": [user("ask"), assistant("no")],
    "rejected": [user("ask"), assistant("yes")],
}


@pytest.mark.parametrize(
    "row",
    [
        EXPLICIT,
        IMPLICIT,
        IMPLICIT | {"prompt": [user("ask")]},
        IMPLICIT | {"prompt": "ask"},
        EXPLICIT | {"prompt": "ask", "rejected": "yes"},
    ],
    ids=["explicit", "implicit", "both", "text and dialogues", "mixed"],
)
def test_a_turn_of_messages_is_its_texts_in_every_form_of_trl(tmp_path: Path, row: Row) -> None:
    found = read(tmp_path, row, safe="chosen", unsafe="rejected")
    assert found == {"prompt": "ask", "safe": "no", "unsafe": "yes"}


def test_messages_are_read_in_every_format(tmp_path: Path) -> None:
    asked, said = [user("ask")], [assistant("no")]
    assert read(tmp_path, {"prompt": asked, "response": said, "is_safe": True}, "beavertails") == {
        "prompt": "ask",
        "response": "no",
        "is_safe": True,
    }
    flags: Row = {
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": 0,
    }
    row: Row = {"response_0": asked + said, "response_1": [*asked, assistant("yes")]} | flags
    assert read(tmp_path, row, "safe_rlhf") == flags | {
        "prompt": "ask",
        "response_0": "no",
        "response_1": "yes",
    }
    assert read(tmp_path, EXPLICIT, "tldr") == {"prompt": "ask", "chosen": "no", "rejected": "yes"}


def test_helpfulness_dialogues_may_have_several_turns(tmp_path: Path) -> None:
    before = [user("hi"), assistant("hello"), user("cup?")]
    row: Row = {"chosen": [*before, assistant("glue")], "rejected": [*before, assistant("what")]}
    turns = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: cup?\n\nAssistant: "
    assert read(tmp_path, row, "helpful") == {"chosen": f"{turns}glue", "rejected": f"{turns}what"}


@pytest.mark.parametrize(
    "row",
    [
        EXPLICIT,
        IMPLICIT,
        IMPLICIT | {"prompt": "ask"},
        IMPLICIT | {"prompt": 7},
        {"prompt": "ask", "chosen": "no", "rejected": "yes"},
        {"prompt": "\n\nHuman: ask\n\nAssistant:", "chosen": " no", "rejected": " yes"},
        EXPLICIT | {"prompt": "ask", "rejected": "yes"},
    ],
    ids=["explicit", "implicit", "both", "number", "texts", "marked texts", "mixed"],
)
def test_helpfulness_is_read_in_every_form_of_trl(tmp_path: Path, row: Row) -> None:
    begin = "\n\nHuman: ask\n\nAssistant: "
    found = {"chosen": f"{begin}no", "rejected": f"{begin}yes"}
    assert read(tmp_path, row, "helpful") == found


def test_a_prompt_of_several_turns_begins_the_dialogue(tmp_path: Path) -> None:
    before = [user("hi"), assistant("hello"), user("cup?")]
    turns = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: cup?\n\nAssistant: "
    found = {"chosen": f"{turns}no", "rejected": f"{turns}yes"}
    assert read(tmp_path, EXPLICIT | {"prompt": before}, "helpful") == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [user("a"), assistant("b")]}, "end with one of the assistant in row 1"),
        ({"prompt": 7}, "column 'prompt' of every row, got a value of type int in row 1"),
        ({"prompt": " "}, "column 'chosen' of every row, got a text without these marks in row 1"),
        ({"chosen": None}, "column 'chosen' of every row, got null in row 1"),
    ],
)
def test_a_dialogue_without_its_begin_or_end_is_refused_by_row(
    tmp_path: Path, changes: Row, message: str
) -> None:
    assert message in refusal(tmp_path, EXPLICIT | changes, "helpful")


@pytest.mark.parametrize(
    ("changes", "column", "found"),
    [
        ({"prompt": [{"role": "system", "content": "s"}, user("ask")]}, "prompt", "the role 'sys"),
        ({"prompt": [{"role": ["user"], "content": "a"}]}, "prompt", "of the role ['user']"),
        ({"prompt": [user("a"), assistant("b"), user("c")]}, "prompt", "messages of several turns"),
        ({"prompt": [assistant("a")]}, "prompt", "messages that end with one of the assistant"),
        ({"prompt": [user("a"), user("b")]}, "prompt", "two messages of the user one after"),
        ({"prompt": [user(None)]}, "prompt", "a message whose content is no text"),
        ({"prompt": [{"from": "human", "value": "a"}]}, "prompt", "a value of type list"),
        ({"prompt": []}, "prompt", "a value of type list"),
        ({"prompt": [user(" ")]}, "prompt", "an empty text"),
        ({"chosen": [user("ask")]}, "chosen", "messages that end with one of the user"),
        ({"chosen": [user("b"), assistant("a")]}, "chosen", "messages that answer another prompt"),
        (
            {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")]},
            "chosen",
            "messages of several turns",
        ),
    ],
)
def test_what_is_no_single_turn_is_refused_by_row(
    tmp_path: Path, changes: Row, column: str, found: str
) -> None:
    message = refusal(tmp_path, EXPLICIT | changes, safe="chosen", unsafe="rejected")
    assert f"hold a non-empty text in column {column!r} of every row, got " in message
    assert found in message
    assert "in row 1 (1 of 1 rows) of mine.jsonl." in message


def test_the_advice_for_several_turns_works(tmp_path: Path) -> None:
    row = EXPLICIT | {"prompt": [{"role": "system", "content": "s"}, user("ask")]}
    message = refusal(tmp_path, row, safe="chosen", unsafe="rejected")
    assert "Write anything else as a text in place of the list." in message
    found = read(tmp_path, row | {"prompt": "s\n\nask"}, safe="chosen", unsafe="rejected")
    assert found == {"prompt": "s\n\nask", "safe": "no", "unsafe": "yes"}


def test_a_prompt_that_no_answer_has_is_missed(tmp_path: Path) -> None:
    row: Row = {"safe": [assistant("no")], "unsafe": [assistant("yes")]}
    assert "mine.jsonl without ['prompt'] (its columns: ['safe', 'unsafe'])" in refusal(
        tmp_path, row
    )
