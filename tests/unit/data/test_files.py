"""Files from hell: every one is read or refused by file and place, and none ends in a traceback."""

import gzip
import json
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpa_ray.data import errors
from rpa_ray.data.errors import DataError
from rpa_ray.data.load import load_rows, load_train_and_test
from rpa_ray.data.schema import Row

HALF = "half \ud83d"
ROWS: list[Row] = [
    {"prompt": f"ask {i}", "safe": f"no {i}", "unsafe": f"yes {i}"} for i in range(4)
]


def load(source: Path, name: str = "preferences", **columns: str) -> list[Row]:
    train, test = load_train_and_test(name, str(source), path_key="data.path", columns=columns)
    return sorted(train + test, key=lambda row: str(row["prompt"]))


def error_of(source: Path, name: str = "preferences") -> str:
    with pytest.raises(DataError) as error:
        load_rows(name, str(source), split="train", path_key="data.path")
    return str(error.value)


def lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def arrow(rows: list[Row]) -> pa.Table:
    """Return rows as Arrow keeps them, halves of characters too: it looks into no text."""

    def packed(value: object) -> object:
        match value:
            case str():
                return value.encode("utf-8", "surrogatepass")
            case list():
                return [packed(part) for part in value]
            case dict():
                return {name: packed(part) for name, part in value.items()}
            case _:
                return value

    def texts(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_list(kind):
            return pa.list_(texts(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([(field.name, texts(field.type)) for field in kind])
        return pa.string() if pa.types.is_binary(kind) else kind

    table = pa.Table.from_pylist([cast("Row", packed(row)) for row in rows]).combine_chunks()
    arrays = (table[name].chunk(0) for name in table.column_names)
    return pa.table([array.view(texts(array.type)) for array in arrays], table.column_names)


def write(file: Path, rows: list[Row]) -> Path:
    match file.suffix:
        case ".parquet":
            pq.write_table(arrow(rows), file)
        case ".json":
            file.write_text(json.dumps({"data": rows}))
        case _:
            file.write_text(lines(rows))
    return file


def said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("column", ["prompt", "safe", "unsafe", "category"])
def test_half_of_a_character_is_refused_by_row_in_every_column(
    tmp_path: Path, suffix: str, column: str
) -> None:
    rows = [row | {"category": "loud"} for row in ROWS]
    for i in (1, 3):
        rows[i] = rows[i] | {column: HALF}
    message = error_of(write(tmp_path / f"mine{suffix}", rows))
    assert f"in column {column!r} of every row, got half of a character (a lone surrogate) in " in (
        message
    )
    assert f"in row 2, 4 (2 of 4 rows) of mine{suffix}" in message


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_half_of_a_character_is_refused_in_messages(tmp_path: Path, suffix: str) -> None:
    rows = [row | {"safe": said(HALF if i == 2 else "no")} for i, row in enumerate(ROWS)]
    message = error_of(write(tmp_path / f"mine{suffix}", rows))
    assert (
        "in column 'safe' of every row, got half of a character (a lone surrogate) in " in message
    )
    assert "in row 3 (1 of 4 rows)" in message


@pytest.mark.parametrize("name", ["beavertails", "safe_rlhf", "tldr", "helpful"])
def test_half_of_a_character_is_refused_in_every_format(tmp_path: Path, name: str) -> None:
    row: Row = {
        "prompt": "a",
        "response": HALF,
        "is_safe": True,
        "response_0": "a",
        "response_1": HALF,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 0,
        "safer_response_id": 0,
        "chosen": f"\n\nHuman: a\n\nAssistant: {HALF}",
        "rejected": "\n\nHuman: a\n\nAssistant: b",
    }
    message = error_of(write(tmp_path / "mine.jsonl", [row]), name)
    assert "got half of a character (a lone surrogate) in row 1 (1 of 1 rows)" in message


def test_half_of_a_character_is_refused_in_the_name_of_a_category(tmp_path: Path) -> None:
    row: Row = {"prompt": "a", "response": "b", "is_safe": False, "category": {HALF: True}}
    assert "half of a character" in error_of(write(tmp_path / "mine.jsonl", [row]), "beavertails")


def test_whole_characters_beyond_the_first_plane_are_read(tmp_path: Path) -> None:
    rows = [row | {"unsafe": "\U0001f600 \u4e2d\u200b \x00"} for row in ROWS]
    for suffix in (".jsonl", ".json", ".parquet"):
        assert load(write(tmp_path / f"mine{suffix}", rows)) == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_text_file_that_is_no_utf8_is_refused_by_its_line(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    file = tmp_path / f"mine{suffix}"
    rows = ["prompt,safe,unsafe", "a,no,yes", "caf\u00e9,no,yes"]
    if suffix != ".csv":
        rows = [json.dumps(row, ensure_ascii=False) for row in (*ROWS[:2], {"prompt": "caf\u00e9"})]
    file.write_bytes("\n".join(rows).encode(encoding))
    place = f"{file.name}: line {3 if encoding == 'latin-1' else 1} is not UTF-8"
    assert f"be a readable {suffix[1:]} file, got {place}" in error_of(file)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_mark_of_the_byte_order_is_no_part_of_the_first_column(
    tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"mine{suffix}"
    text = "prompt,safe,unsafe\nask 0,no 0,yes 0\n" if suffix == ".csv" else lines(ROWS[:1])
    file.write_bytes(text.encode("utf-8-sig"))
    assert load(file) == ROWS[:1]


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    first = lines(ROWS[:1])
    file.write_text(first + '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    assert "got mine.jsonl: arrays or objects nested without end in line 2." in error_of(file)
    file.write_text(first + '{"prompt": "a", "id": ' + "9" * 5000 + "}\n")
    assert "got mine.jsonl: a number of too many digits in line 2." in error_of(file)
    file.write_text(first + '{"prompt": "a\x00"}\n')
    assert "in line 2 of mine.jsonl (Invalid control character at)" in error_of(file)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_packed_file_is_what_is_in_it(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == ".csv":
        (tmp_path / "mine.csv").write_text("prompt,safe,unsafe\nask 0,no 0,yes 0\n")
        rows = ROWS[:1]
    else:
        write(tmp_path / f"mine{suffix}", ROWS)
        rows = ROWS
    packed = tmp_path / f"mine{suffix}.gz"
    packed.write_bytes(gzip.compress((tmp_path / f"mine{suffix}").read_bytes()))
    assert load(packed) == rows
    whole = packed.read_bytes()
    for broken in (whole[:-12], whole[:10] + bytes([255] * 20) + whole[30:], b"no gzip at all"):
        packed.write_bytes(broken)
        assert f"be a readable {suffix[1:]} file, got {packed.name}: " in error_of(packed)
    packed.write_bytes(gzip.compress(b"x" * 100_000))
    monkeypatch.setattr(errors, "MAX_BYTES", 1000)
    message = error_of(packed)
    assert "hold at most 10,000,000 rows and " in message
    assert f"in {packed.name}. Take a part of it." in message


@pytest.mark.parametrize("name", ["mine.parquet", "mine.jsonl", "mine.csv", "mine.jsonl.gz"])
def test_a_pointer_to_a_file_that_was_not_fetched_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert f"be the file itself, got {name}, a pointer of Git LFS." in error_of(tmp_path / name)


@pytest.mark.parametrize(
    "strange",
    [
        pa.array([[1.5]] * 4, pa.list_(pa.float16())),
        pa.array([2**62] * 4, pa.duration("ns")),
        pa.array([2**40] * 4, pa.timestamp("s", tz="Mars/Olympus")),
        pa.array([b"\xff"] * 4),
        pa.array([None] * 4),
    ],
    ids=["halves", "duration", "year", "bytes", "nothing"],
)
def test_columns_that_are_not_asked_for_may_be_anything(tmp_path: Path, strange: pa.Array) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table.append_column("other", strange), tmp_path / "mine.parquet")
    assert load(tmp_path / "mine.parquet") == ROWS
    asked = table.drop_columns("unsafe").append_column("unsafe", strange)
    pq.write_table(asked, tmp_path / "mine.parquet")
    assert "mine.parquet" in error_of(tmp_path / "mine.parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize(("no", "yes"), [(0, 1), ("false", "true"), ("FALSE", "True")])
def test_flags_are_numbers_or_words_where_all_of_a_column_are(
    tmp_path: Path, suffix: str, no: object, yes: object
) -> None:
    written = (yes, no, no, yes)
    file = tmp_path / f"mine{suffix}"
    if suffix == ".csv":
        cells = "".join(f"ask {i},x,{value}\n" for i, value in enumerate(written))
        file.write_text(f"prompt,response,is_safe\n{cells}")
    else:
        answer: Row = {"response": "x"}
        write(file, [answer | {"prompt": f"ask {i}", "is_safe": v} for i, v in enumerate(written)])
    assert [row["is_safe"] for row in load(file, "beavertails")] == [True, False, False, True]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((0, 1, True, 1), "another value among 0 and 1 in row 3 (1 of 4 rows)"),
        ((0, 1, 1, 2), "another value among 0 and 1 in row 4 (1 of 4 rows)"),
        (("true", "False", "yes", "no"), "another value among words true and false in row 3, 4"),
        ((True, False, 1, True), "a value of type int in row 3 (1 of 4 rows)"),
        ((True, False, "true", True), "a value of type str in row 3 (1 of 4 rows)"),
        ((0, 1, None, 1), "null in row 3 (1 of 4 rows)"),
        ((0.0, 1.0, 0.5, 0.0), "another value among 0.0 and 1.0 in row 3 (1 of 4 rows)"),
        (("0", "1", "true", "0"), "another value among texts 0 and 1 in row 3 (1 of 4 rows)"),
    ],
)
def test_flags_of_two_conventions_or_of_another_are_refused_by_row(
    tmp_path: Path, values: tuple[object, ...], found: str
) -> None:
    rows: list[Row] = [{"prompt": "a", "response": "b", "is_safe": value} for value in values]
    assert found in error_of(write(tmp_path / "mine.jsonl", rows), "beavertails")


def test_rows_may_lie_in_one_array_of_an_object(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    for text in (
        json.dumps({"data": ROWS}),
        json.dumps({"version": 1, "tags": ["x"], "examples": ROWS}, indent=2),
        json.dumps(ROWS, indent=2),
        lines(ROWS),
    ):
        file.write_text(text)
        assert load(file) == ROWS
    for one in (json.dumps(ROWS[0]), json.dumps(ROWS[0], indent=1)):
        file.write_text(one)
        assert load(file) == ROWS[:1]


def test_an_object_of_several_arrays_is_refused_and_its_advice_works(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"train": ROWS[:3], "test": ROWS[3:]}))
    message = error_of(file)
    assert (
        "hold one array of rows, got ['test', 'train'] in mine.json. Write the rows of" in message
    )
    for name, rows in (("train", ROWS[:3]), ("test", ROWS[3:])):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / f"{name}.json").write_text(json.dumps(rows))
    assert load(tmp_path / "new") == ROWS


def test_an_object_without_rows_is_refused_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"data": {"prompt": {"0": "a"}}}, indent=1))
    assert "mine.json without ['prompt', 'safe', 'unsafe'] (its columns: ['data'])" in error_of(
        tmp_path / "mine.json"
    )


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_csv_of_another_separator_is_told_to_be_written_with_commas(
    tmp_path: Path, sign: str, name: str
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(sign.join(("prompt", "safe", "unsafe")) + "\n" + sign.join("ab,c") + "\n")
    message = error_of(file)
    assert f"got mine.csv: {name} between its columns, where a CSV file has commas." in message
    assert "__index" not in message


def test_rows_of_a_csv_that_are_longer_than_its_first_line_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("prompt,safe,unsafe\nask, please,no,yes\n")
    assert "mine.csv: rows of more values than its first line has names" in error_of(file)


@pytest.mark.parametrize("num_digits", [20, 3000])
def test_a_number_of_a_csv_that_is_too_long_is_refused_by_its_line(
    tmp_path: Path, num_digits: int
) -> None:
    file = tmp_path / "mine.csv"
    digits = "9" * num_digits
    file.write_text(f"id,prompt,response,is_safe\n{digits},a,{digits},0\n2,a,c,{digits}\n")
    message = error_of(file, "beavertails")
    assert f"mine.csv: a number of too many digits ({num_digits}) in line 3." in message
    file.write_text(f"id,prompt,response,is_safe\n{digits},a,{digits},0\n")
    assert load(file, "beavertails") == [{"prompt": "a", "response": digits, "is_safe": False}]
