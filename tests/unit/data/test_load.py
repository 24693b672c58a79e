import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.load import load_rows
from rpa_ray.data.schema import Row

GOOD: list[Row] = [
    {"prompt": "a", "response": "no", "is_safe": True},
    {"prompt": "b", "response": "yes", "is_safe": False},
]


def write(file: Path, rows: list[Row]) -> Path:
    match file.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            file.write_text(json.dumps(rows, indent=1))
        case ".csv":
            lines = [",".join(GOOD[0]), *(",".join(map(str, row.values())) for row in rows)]
            file.write_text("\n".join(lines))
    return file


def load(source: Path | str, name: str = "beavertails") -> list[Row]:
    return load_rows(name, str(source), split="train", path_key="data.path")


def error_of(source: Path | str, name: str = "beavertails") -> str:
    with pytest.raises(DataError) as error:
        load(source, name)
    message = str(error.value)
    assert message.startswith("data.path must ")
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
    ("value", "found"), [(2, "another number"), (True, "a value of type bool"), ("0", "type str")]
)
def test_the_safer_answer_is_zero_or_one(tmp_path: Path, value: object, found: str) -> None:
    row: Row = {
        "prompt": "a",
        "response_0": "x",
        "response_1": "y",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": value,
    }
    write(tmp_path / "train.jsonl", [row])
    assert found in error_of(tmp_path, "safe_rlhf")


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


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.name must be one of \['beavertails', 'helpful', "):
        load(tmp_path, "beaver")


class NotFound(BaseHTTPRequestHandler):
    """Answers every question with 404, as the Hub does for a data set that is not there."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def set_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes a port of this machine the Hub."""

    def set_port(port: int) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return set_port


def test_a_hub_that_never_answers_is_given_up_within_five_seconds(
    set_hub: Callable[[int], None],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        set_hub(server.getsockname()[1])
        start = time.monotonic()
        message = error_of("owner/name@v1")
    assert time.monotonic() - start < 5
    assert "be a data set within reach, got owner/name (" in message
    assert "Name a local folder or file" in message


def test_a_hub_that_cannot_be_reached_is_given_up_at_once(set_hub: Callable[[int], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free_port = server.getsockname()[1]
    set_hub(free_port)
    assert "be a data set within reach" in error_of("owner/name")


def test_a_data_set_that_the_hub_does_not_know_is_refused(set_hub: Callable[[int], None]) -> None:
    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        set_hub(server.server_port)
        message = error_of("owner/name")
        server.shutdown()
    assert "be a data set that the Hub gives out, got owner/name (" in message
    assert "Check id, revision and access rights." in message
