import json
import os
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpa_ray.data import errors, folder
from rpa_ray.data import files as loading
from rpa_ray.data.errors import DataError
from rpa_ray.data.load import load_rows, load_train_and_test
from rpa_ray.data.schema import Row

GOOD: list[Row] = [
    {"prompt": "a", "response": "no", "is_safe": True},
    {"prompt": "b", "response": "yes", "is_safe": False},
]


PREFERENCES: list[Row] = [
    {"prompt": "a", "safe": "no", "unsafe": "yes"},
    {"prompt": "b", "safe": "never", "unsafe": "7"},
]
OWN = {"prompt": "question", "safe": "good", "unsafe": "bad"}


def in_own_words(rows: list[Row]) -> list[Row]:
    return [{OWN.get(column, column): value for column, value in row.items()} for row in rows]


def write(file: Path, rows: list[Row]) -> Path:
    match file.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            file.write_text(json.dumps(rows, indent=1))
        case ".csv":
            lines = [
                ",".join(rows[0] if rows else GOOD[0]),
                *(",".join(map(str, row.values())) for row in rows),
            ]
            file.write_text("\n".join(lines))
    return file


def load(
    source: Path | str, name: str = "beavertails", columns: dict[str, str] | None = None
) -> list[Row]:
    return load_rows(name, str(source), split="train", path_key="data.path", columns=columns)


def error_of(
    source: Path | str, name: str = "beavertails", columns: dict[str, str] | None = None
) -> str:
    with pytest.raises(DataError) as error:
        load(source, name, columns)
    message = str(error.value)
    assert message.startswith("data.")
    assert ", got " in message
    return message


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_a_folder_gives_the_rows_of_its_split_in_order(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", GOOD)
    write(tmp_path / f"test{suffix}", GOOD[::-1])
    assert load(tmp_path) == GOOD
    assert load_rows("beavertails", str(tmp_path), split="test", path_key="k") == GOOD[::-1]


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", GOOD)
    load(tmp_path)
    write(file, GOOD[:1])
    assert load(tmp_path) == GOOD[:1]


def test_columns_outside_the_schema_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [row | {"note": 1} for row in GOOD])
    assert load(tmp_path) == GOOD


def test_structures_of_flags_survive_the_file(tmp_path: Path) -> None:
    rows = [row | {"category": {"loud": True, "quiet": False}} for row in GOOD]
    write(tmp_path / "train.parquet", rows)
    assert load(tmp_path) == rows


def test_a_single_file_is_divided_by_prompt(tmp_path: Path) -> None:
    rows: list[Row] = [GOOD[0] | {"prompt": f"ask {i // 2}"} for i in range(400)]
    file = write(tmp_path / "all.jsonl", rows)
    train = {str(row["prompt"]) for row in load(file)}
    test_rows = load_rows("beavertails", str(file), split="test", path_key="k")
    test = {str(row["prompt"]) for row in test_rows}
    assert train.isdisjoint(test)
    assert len(train | test) == 200
    # A tenth of 200 prompts, plus or minus four standard deviations.
    assert len(test) == pytest.approx(20, abs=17)


def test_a_file_of_both_splits_is_read_once_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = [GOOD[0] | {"prompt": f"ask {i}"} for i in range(100)]
    file = write(tmp_path / "all.jsonl", rows)
    apart = [
        load_rows("beavertails", str(file), split=split, path_key="k")
        for split in ("train", "test")
    ]
    reads = Mock(wraps=loading.read_file)
    monkeypatch.setattr(folder, "read_file", reads)
    train, test = load_train_and_test("beavertails", str(file), path_key="k")
    assert [train, test] == apart
    assert test
    reads.assert_called_once()


def test_missing_columns_are_named_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [{"prompt": "a", "answer": "b"}])
    message = error_of(tmp_path)
    assert "without ['response', 'is_safe'] (its columns: ['answer', 'prompt'])" in message


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_null_answers_are_named_by_row(tmp_path: Path, suffix: str) -> None:
    rows = [*GOOD, *GOOD, *GOOD]
    rows[2] = rows[2] | {"response": None}
    rows[5] = rows[5] | {"response": None}
    write(tmp_path / f"train{suffix}", rows)
    message = error_of(tmp_path)
    assert "hold a non-empty text in column 'response' of every row" in message
    assert f"null in row 3, 6 (2 of 6 rows) of train{suffix}" in message


def test_not_a_number_in_place_of_a_text_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [GOOD[0], GOOD[1] | {"prompt": float("nan")}])
    assert "NaN in row 2 (1 of 2 rows)" in error_of(tmp_path)


def test_a_parquet_column_of_not_a_number_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [row | {"response": float("nan")} for row in GOOD])
    assert "NaN in row 1, 2 (2 of 2 rows)" in error_of(tmp_path)


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_empty_texts_are_named(tmp_path: Path, empty: str) -> None:
    write(tmp_path / "train.parquet", [GOOD[0], GOOD[1] | {"prompt": empty}])
    assert "an empty text in row 2 (1 of 2 rows)" in error_of(tmp_path)


def test_an_empty_csv_cell_is_an_empty_text_and_the_word_none_is_a_text(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [GOOD[0] | {"response": "None"}, GOOD[1] | {"response": "NA"}])
    assert [row["response"] for row in load(tmp_path)] == ["None", "NA"]
    write(tmp_path / "train.csv", [GOOD[0], GOOD[1] | {"response": ""}])
    assert "an empty text in row 2" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("response", 3, "a value of type int in row 2"),
        ("response", ["x"], "a value of type list in row 2"),
        ("is_safe", "yes", "a value of type str in row 2"),
        ("is_safe", 1, "a value of type int in row 2"),
        ("is_safe", None, "null in row 2"),
        ("category", "loud", "a value of type str in row 2"),
        ("category", {"loud": "very"}, "other values in row 2"),
    ],
)
def test_values_of_another_kind_are_named(
    tmp_path: Path, column: str, value: object, found: str
) -> None:
    write(tmp_path / "train.jsonl", [GOOD[0], GOOD[1] | {column: value}])
    assert found in error_of(tmp_path)


@pytest.mark.parametrize(
    ("value", "found"), [(2, "another number"), (True, "a value of type bool"), ("two", "type str")]
)
def test_the_safer_answer_is_zero_or_one(tmp_path: Path, value: object, found: str) -> None:
    write(tmp_path / "train.jsonl", [comparison() | {"safer_response_id": value}])
    assert found in error_of(tmp_path, "safe_rlhf")


@pytest.mark.parametrize(
    ("no", "yes"), [(0, 1), (0.0, 1.0), ("0", "1"), ("false", "true"), ("False", " TRUE ")]
)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_labels_that_a_whole_column_says_otherwise_are_read(
    tmp_path: Path, suffix: str, no: object, yes: object
) -> None:
    rows = [row | {"is_safe": (no, yes)[row["is_safe"] is True]} for row in GOOD]
    write(tmp_path / f"train{suffix}", rows)
    assert [row["is_safe"] for row in load(tmp_path)] == [True, False]


@pytest.mark.parametrize("labels", [(0, True), ("0", 1), ("true", "1"), (1, 2), ("yes", "no")])
def test_mixed_and_other_labels_are_refused(tmp_path: Path, labels: tuple[object, ...]) -> None:
    write(
        tmp_path / "train.jsonl",
        [row | {"is_safe": label} for row, label in zip(GOOD, labels, strict=True)],
    )
    assert "column 'is_safe' of every row" in error_of(tmp_path)


def test_a_text_without_dialogue_marks_is_named(tmp_path: Path) -> None:
    good = "\n\nHuman: hi\n\nAssistant: hello"
    write(tmp_path / "train.jsonl", [{"chosen": good, "rejected": good}])
    assert len(load(tmp_path, "helpful")) == 1
    write(tmp_path / "train.jsonl", [{"chosen": good, "rejected": "hello"}])
    assert "a text without these marks in row 1" in error_of(tmp_path, "helpful")


def test_only_the_first_ten_rows_are_named_with_the_total(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [GOOD[0] | {"response": None} for _ in range(25)])
    message = error_of(tmp_path)
    assert "in row 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ... (25 of 25 rows)" in message


def test_an_unreadable_line_is_named_by_number(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD[0]) + '\n{"prompt": \n')
    assert "in line 2 of train.jsonl" in error_of(tmp_path)


def test_empty_lines_are_passed_over_and_lines_and_rows_are_counted_all_the_same(
    tmp_path: Path,
) -> None:
    lines = [json.dumps(row) for row in GOOD]
    (tmp_path / "train.jsonl").write_text("\n".join(["", lines[0], " ", "", *lines[1:], "", ""]))
    assert load(tmp_path) == GOOD
    (tmp_path / "train.jsonl").write_text("\n".join([lines[0], "", "{"]))
    assert "'{' in line 3 of train.jsonl" in error_of(tmp_path)
    (tmp_path / "train.jsonl").write_text("\n".join([lines[0], "", json.dumps({"prompt": "a"})]))
    assert "in row 2 (1 of 2 rows) of train.jsonl" in error_of(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_more_rows_than_a_process_holds_are_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / f"train{suffix}", GOOD)
    monkeypatch.setattr(errors, "MAX_ROWS", 1)
    assert f"hold at most 1 rows and 8 GiB unpacked, got 2 rows and 0.0 GiB in train{suffix}" in (
        error_of(tmp_path)
    )


def test_the_footer_of_a_parquet_file_is_asked_before_its_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.parquet", GOOD)
    monkeypatch.setattr(errors, "MAX_ROWS", 1)
    monkeypatch.setattr(
        pq, "ParquetFile", type("Unread", (pq.ParquetFile,), {"iter_batches": None})
    )
    assert "got 2 rows" in error_of(tmp_path)


def test_rows_that_are_packed_small_are_refused_by_what_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "train.parquet", [GOOD[0] | {"response": "no" * 5000}] * 2000)
    assert file.stat().st_size < 2**18
    monkeypatch.setattr(errors, "MAX_BYTES", 2**20)
    assert "0.0 GiB in train.parquet" in error_of(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_a_larger_file_than_a_process_holds_is_refused_unread(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"train{suffix}").write_text("nothing that can be read")
    monkeypatch.setattr(errors, "MAX_BYTES", 10)
    assert "hold at most 10,000,000 rows and " in error_of(tmp_path)


def test_a_large_json_array_is_refused_and_lines_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MAX_ARRAY_BYTES", 10)
    file = write(tmp_path / "train.json", GOOD)
    assert "Write one object a line, into a file .jsonl" in error_of(tmp_path)
    file.unlink()
    write(tmp_path / "train.jsonl", GOOD)
    assert load(tmp_path) == GOOD


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_values_nested_without_end_are_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"train{suffix}").write_text("[" * 200_000)
    assert f"be a readable {suffix[1:]} file, got train{suffix}: " in error_of(tmp_path)


def test_a_line_that_is_no_object_is_named_by_number(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD[0]) + "\n[1]\n")
    assert "list in line 2 of train.jsonl" in error_of(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"train{suffix}").touch()
    assert f"hold at least one row, got none in train{suffix}" in error_of(tmp_path)


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(GOOD).slice(0, 0), tmp_path / "train.parquet")
    assert "hold at least one row" in error_of(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"train{suffix}").write_bytes(b"[\xff\xfe\x00 not a file")
    assert f"be a readable {suffix[1:]} file, got train{suffix}" in error_of(tmp_path)


def test_a_folder_without_the_split_lists_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", GOOD)
    assert "['test.parquet']" in error_of(tmp_path)


def test_a_folder_with_two_files_of_a_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", GOOD)
    write(tmp_path / "train.jsonl", GOOD)
    assert "exactly one of" in error_of(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    assert "be a file of kind" in error_of(tmp_path / "rows.xlsx")


@pytest.mark.parametrize("source", ["/no/such/folder", "rows.jsonl", "data/rows.parquet", "a b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(source: str) -> None:
    assert "be an existing folder or file, or a Hub id" in error_of(source)


def test_a_pipe_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    message = error_of(tmp_path / "rows.jsonl", "preferences")
    assert message.startswith("data.path must be a file, a folder or a Hub id, got ")
    assert message.endswith("rows.jsonl, a pipe, a socket or a device. Write the rows into a file.")


def test_of_many_columns_the_first_are_listed(tmp_path: Path) -> None:
    file = write(tmp_path / "wide.jsonl", [{f"column{i:04}": i for i in range(3000)}])
    message = error_of(file, "preferences")
    assert "(its columns: ['column0000', 'column0001', " in message
    assert len(message) < 600


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.name must be one of \['beavertails', 'helpful', "):
        load(tmp_path, "beaver")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_own_columns_are_read_under_our_names_from_a_folder(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", in_own_words(PREFERENCES))
    assert load(tmp_path, "preferences", OWN) == PREFERENCES


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_own_columns_are_read_from_a_single_file_divided_by_prompt(
    tmp_path: Path, suffix: str
) -> None:
    rows: list[Row] = [PREFERENCES[0] | {"prompt": f"ask {i}"} for i in range(200)]
    file = write(tmp_path / f"mine{suffix}", in_own_words(rows))
    test = load_rows(
        "preferences", str(file), split="test", path_key="data.path", columns=dict(OWN)
    )
    train = load(file, "preferences", OWN)
    assert 0 < len(test) < len(train)
    assert sorted(str(row["prompt"]) for row in train + test) == sorted(
        str(row["prompt"]) for row in rows
    )


def test_two_columns_may_trade_names(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", PREFERENCES)
    swapped = load(tmp_path, "preferences", {"safe": "unsafe", "unsafe": "safe"})
    assert [(row["safe"], row["unsafe"]) for row in swapped] == [("yes", "no"), ("7", "never")]


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        ("beavertails", {"is_safe": "harmless"}, GOOD),
        ("safe_rlhf", {"prompt": "query", "safer_response_id": "safer"}, None),
    ],
)
def test_columns_of_every_schema_can_have_another_name(
    tmp_path: Path, name: str, columns: dict[str, str], rows: list[Row] | None
) -> None:
    rows = rows or [comparison()]
    renamed: list[Row] = [
        {columns.get(column, column): value for column, value in row.items()} for row in rows
    ]
    write(tmp_path / "train.parquet", renamed)
    assert load(tmp_path, name, columns) == rows


def test_a_mapping_to_a_column_that_is_not_there_names_key_file_and_the_nearest(
    tmp_path: Path,
) -> None:
    write(tmp_path / "train.jsonl", in_own_words(PREFERENCES))
    assert error_of(tmp_path, "preferences", OWN | {"prompt": "qestion"}) == (
        "data.columns.prompt must name a column of train.jsonl "
        "(its columns: ['bad', 'good', 'question']), got 'qestion'. Did you mean 'question'?"
    )
    assert error_of(tmp_path, "preferences", OWN | {"category": "kind"}).startswith(
        "data.columns.category must name a column of train.jsonl"
    )


def test_columns_that_nobody_mapped_are_missed_by_their_own_names(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", in_own_words(PREFERENCES))
    message = error_of(tmp_path, "preferences", {"prompt": "question"})
    assert message.startswith("data.path must have the columns ['question', 'safe', 'unsafe'], got")
    assert "without ['safe', 'unsafe'] (its columns: ['bad', 'good', 'question'])" in message
    assert "data.columns" in message


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_broken_rows_are_named_by_the_files_own_column(tmp_path: Path, suffix: str) -> None:
    rows = [*PREFERENCES, PREFERENCES[0] | {"unsafe": " "}]
    write(tmp_path / f"train{suffix}", in_own_words(rows))
    assert error_of(tmp_path, "preferences", OWN) == (
        "data.path must hold a non-empty text in column 'bad' of every row, got an empty text in "
        f"row 3 (1 of 3 rows) of train{suffix}. Mend or remove these rows; they are counted from 1."
    )


def test_two_equal_answers_are_refused_by_row_and_own_columns(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", in_own_words([*PREFERENCES, PREFERENCES[1] | {"safe": "7"}]))
    message = error_of(tmp_path, "preferences", OWN)
    assert "must hold two different texts in columns 'good' and 'bad' of every row, got" in message
    assert "the same text in row 3 (1 of 3 rows) of train.jsonl" in message


def test_two_answers_that_differ_in_white_space_alone_are_the_same(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [*PREFERENCES, PREFERENCES[1] | {"safe": " 7\n"}])
    assert "the same text in row 3 (1 of 3 rows)" in error_of(tmp_path, "preferences")


def test_a_category_may_be_null_or_missing_but_no_number(tmp_path: Path) -> None:
    kinds: list[Row] = [{"category": "loud"}, {"category": None}, {}]
    write(tmp_path / "train.jsonl", [PREFERENCES[0] | kind for kind in kinds])
    assert len(load(tmp_path, "preferences")) == 3
    write(tmp_path / "train.jsonl", [PREFERENCES[0] | {"category": 3}])
    assert "hold a text or null in column 'category'" in error_of(tmp_path, "preferences")


def test_texts_of_a_csv_file_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": "1", "safe": "True", "unsafe": "2.50", "category": "7"}]
    write(tmp_path / "train.csv", rows)
    assert load(tmp_path, "preferences") == rows


def test_a_row_that_calls_the_unsafe_answer_safer_is_refused_by_its_number_in_the_file(
    tmp_path: Path,
) -> None:
    rows = [comparison(f"ask {i}") for i in range(40)]
    rows[30] = rows[30] | {"safer_response_id": 1}
    file = write(tmp_path / "mine.jsonl", rows)
    message = error_of(file, "safe_rlhf")
    assert "the unsafe one in row 31 (1 of 40 rows) of mine.jsonl" in message


def test_a_row_that_lacks_a_value_is_not_asked_how_its_values_fit_together(tmp_path: Path) -> None:
    rows = [comparison("a"), comparison("b")]
    del rows[1]["safer_response_id"]
    write(tmp_path / "train.jsonl", rows)
    message = error_of(tmp_path, "safe_rlhf")
    assert "hold 0 or 1 in column 'safer_response_id' of every row, got null in row 2" in message


def comparison(prompt: str = "a") -> Row:
    return {
        "prompt": prompt,
        "response_0": "x",
        "response_1": "y",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": 0,
    }


@pytest.mark.parametrize("value", ["9" * 5000, "both"])
def test_a_row_of_a_csv_that_makes_a_column_of_numbers_one_of_texts_is_named_alone(
    tmp_path: Path, value: str
) -> None:
    names = "prompt,response_0,response_1,is_response_0_safe,is_response_1_safe"
    lines = [f"{names},better_response_id,safer_response_id"]
    lines += [f"ask {i},no,yes,true,false,{value if i == 2 else i % 2},0" for i in range(5)]
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(lines))
    assert "a value of type str in row 3 (1 of 5 rows) of mine.csv" in error_of(file, "safe_rlhf")
