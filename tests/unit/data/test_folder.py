"""Folders as people have them: downloaded from the Hub, or saved by ``datasets``."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpa_ray.data import errors
from rpa_ray.data.errors import DataError
from rpa_ray.data.load import load_train_and_test
from rpa_ray.data.schema import Row
from rpa_ray.data.source import DataSource, provenance_of

NUM_ROWS = 60


def rows_of(begin: int, end: int) -> list[Row]:
    return [{"prompt": f"ask {i}", "safe": "no", "unsafe": f"yes {i}"} for i in range(begin, end)]


def write(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)


def load(folder: Path, name: str = "preferences") -> tuple[list[Row], list[Row]]:
    return load_train_and_test(name, str(folder), path_key="data.path", subset="330k")


def refusal(folder: Path, name: str = "preferences") -> str:
    with pytest.raises(DataError) as error:
        load(folder, name)
    return str(error.value)


def downloaded(folder: Path) -> None:
    write(folder / "data" / "train-00000-of-00002.parquet", rows_of(0, 30))
    write(folder / "data" / "train-00001-of-00002.parquet", rows_of(30, 50))
    write(folder / "data" / "test-00000-of-00001.parquet", rows_of(50, 60))
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA data set.\n")
    write(folder / ".cache" / "huggingface" / "download" / "test.jsonl", [{"other": 1}])


def linked(folder: Path) -> None:
    """Write what the Hub's cache has: names that link to files elsewhere."""
    downloaded(folder.parent / "blobs")
    for file in (folder.parent / "blobs" / "data").iterdir():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / file.name).symlink_to(os.path.relpath(file, folder / "data"))


def with_configs(folder: Path) -> None:
    write(folder / "a" / "one.jsonl.gz", rows_of(0, 50))
    write(folder / "a" / "two.jsonl.gz", rows_of(50, 60))
    files = "[{split: train, path: a/one.jsonl.gz}, {split: test, path: a/two.jsonl.gz}]"
    configs = f"configs: [{{config_name: default, data_files: {files}}}]"
    (folder / "README.md").write_text(f"---\n{configs}\n---\n")


def saved(folder: Path) -> None:
    datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows_of(0, 50)),
        test=datasets.Dataset.from_list(rows_of(50, 60)),
    ).save_to_disk(str(folder))


def with_validation(folder: Path) -> None:
    for split, begin, end in (("train", 0, 50), ("validation", 60, 70), ("test", 50, 60)):
        write(folder / f"{split}.jsonl", rows_of(begin, end))


@pytest.mark.parametrize("made", [downloaded, linked, with_configs, saved, with_validation])
def test_a_folder_that_the_library_reads_gives_its_splits(
    tmp_path: Path, made: Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    made(folder)
    assert load(folder) == (rows_of(0, 50), rows_of(50, 60))


def saved_alone(folder: Path) -> None:
    datasets.Dataset.from_list(rows_of(0, NUM_ROWS)).save_to_disk(str(folder))


def one_file(folder: Path) -> None:
    write(folder / "sp ace" / "mine 1.jsonl", rows_of(0, NUM_ROWS))


def train_and_validation(folder: Path) -> None:
    write(folder / "train.parquet", rows_of(0, NUM_ROWS))
    write(folder / "validation.parquet", rows_of(90, 99))


@pytest.mark.parametrize("made", [saved_alone, one_file, train_and_validation])
def test_a_folder_without_a_test_split_is_divided_by_prompt(
    tmp_path: Path, made: Callable[[Path], None]
) -> None:
    made(tmp_path / "folder")
    train, test = load(tmp_path / "folder")
    assert 0 < len(test) < len(train)
    assert sorted(train + test, key=str) == sorted(rows_of(0, NUM_ROWS), key=str)


def test_a_downloaded_set_of_the_hub_has_its_splits_by_their_names_there(tmp_path: Path) -> None:
    answers: list[Row] = [{"prompt": "a", "response": "b", "is_safe": True}]
    for name in ("330k_train", "330k_test", "30k_train", "30k_test"):
        size = name.partition("_")[0]
        rows = [answers[0] | {"response": name}]
        write(tmp_path / "round0" / size / f"{name.partition('_')[2]}.jsonl.gz", rows)
    files = ", ".join(
        f"{{split: {name}, path: round0/{name.replace('_', '/')}.jsonl.gz}}"
        for name in ("330k_train", "330k_test", "30k_train", "30k_test")
    )
    configs = f"configs: [{{config_name: default, data_files: [{files}]}}]"
    (tmp_path / "README.md").write_text(f"---\n{configs}\n---\n")
    train, test = load(tmp_path, "beavertails")
    assert [row["response"] for row in train + test] == ["330k_train", "30k_test"]


def test_the_part_of_a_downloaded_set_that_is_read_on_the_hub_is_read_here(tmp_path: Path) -> None:
    dialogue = "\n\nHuman: a\n\nAssistant: "
    for part in ("helpful-base", "harmless-base"):
        row: Row = {"chosen": f"{dialogue}{part}", "rejected": f"{dialogue}b"}
        for split in ("train", "test"):
            write(tmp_path / part / f"{split}.jsonl.gz", [row])
    assert [str(row["chosen"])[-12:] for row in load(tmp_path, "helpful")[0]] == ["helpful-base"]


def test_rows_of_several_files_are_counted_through(tmp_path: Path) -> None:
    downloaded(tmp_path)
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [{"prompt": "a", "safe": "b"}])
    assert refusal(tmp_path) == (
        "data.path must hold a non-empty text in column 'unsafe' of every row, got null in row 31 "
        "(1 of 31 rows) of data/train-00000-of-00002.parquet and 1 more, counted through. "
        "Mend or remove these rows; they are counted from 1."
    )


@pytest.mark.parametrize("made", [downloaded, saved])
def test_more_than_a_process_holds_is_refused(
    tmp_path: Path, made: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "folder")
    monkeypatch.setattr(errors, "MAX_ROWS", 40)
    with pytest.raises(DataError, match=r"hold at most 40 rows and .*, got 50 rows"):
        load(tmp_path / "folder")


def test_a_choice_of_configs_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "mine.jsonl", rows_of(0, NUM_ROWS))
    configs = "[{config_name: p, data_files: one/*}, {config_name: q, data_files: two/*}]"
    (tmp_path / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    message = refusal(tmp_path)
    assert "Please pick one among the available configs: ['p', 'q']" in message
    assert message.endswith("Name one file, or a folder of the files of one split alone.")
    assert sum(map(len, load(tmp_path / "one" / "mine.jsonl"))) == NUM_ROWS
    assert sum(map(len, load(tmp_path / "one"))) == NUM_ROWS


def test_splits_of_other_names_are_refused_and_the_advice_works(tmp_path: Path) -> None:
    datasets.DatasetDict(prefs=datasets.Dataset.from_list(rows_of(0, NUM_ROWS))).save_to_disk(
        str(tmp_path / "saved")
    )
    message = refusal(tmp_path / "saved")
    assert "a folder with the split 'train', got the splits ['prefs'] of " in message
    assert "a folder of the files of one split alone." in message
    assert sum(map(len, load(tmp_path / "saved" / "prefs"))) == NUM_ROWS


def torn_readme(folder: Path) -> None:
    downloaded(folder)
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")


def files_elsewhere(folder: Path) -> None:
    write(folder.parent / "elsewhere.jsonl", rows_of(0, 9))
    folder.mkdir()
    configs = "[{config_name: default, data_files: ../elsewhere.jsonl}]"
    (folder / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")


def torn_table(folder: Path) -> None:
    saved(folder)
    (folder / "train" / "state.json").write_text("{")


def lost_table(folder: Path) -> None:
    saved(folder)
    for file in (folder / "train").glob("*.arrow"):
        file.unlink()


def empty_table(folder: Path) -> None:
    none = datasets.Dataset.from_dict({"prompt": []})
    datasets.DatasetDict({"train": none, "test": none}).save_to_disk(str(folder))


def pictures(folder: Path) -> None:
    folder.mkdir()
    (folder / "one.png").write_bytes(b"x")


@pytest.mark.parametrize(
    "made",
    [Path.mkdir, torn_readme, files_elsewhere, torn_table, lost_table, empty_table, pictures],
)
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, made: Callable[[Path], None]
) -> None:
    made(tmp_path / "folder")
    refusal(tmp_path / "folder")


def test_a_saved_table_that_points_out_of_its_memory_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "saved")
    (file,) = (tmp_path / "saved" / "train").glob("*.arrow")
    whole = file.read_bytes()
    first = pa.array([str(row["prompt"]) for row in rows_of(0, 3)])  # the offsets begin so
    offsets = first.buffers()[1].to_pybytes()[:16]
    assert offsets in whole
    file.write_bytes(whole.replace(offsets, offsets[:7] + b"\x7f" + offsets[8:]))
    message = refusal(tmp_path / "saved")
    assert message.startswith("data.path must hold tables that are whole, got ")
    assert message.endswith(". Write the data set again.")


@pytest.mark.parametrize("put", [os.mkfifo, lambda file: file.symlink_to("nowhere")])
@pytest.mark.parametrize("name", ["test.jsonl", "data/test-00000-of-00001.parquet"])
def test_a_name_of_a_data_file_that_leads_to_none_is_refused(
    tmp_path: Path, name: str, put: Callable[[Path], None]
) -> None:
    write(tmp_path / name.replace("test", "train"), rows_of(0, 50))
    load(tmp_path)
    put(tmp_path / name)
    assert refusal(tmp_path) == (
        f"data.path must be a folder of files, got {tmp_path / name}, a lost link, a pipe, a "
        "socket or a device. Download or copy the file again, or remove the name."
    )


def test_what_a_folder_is_called_by_follows_all_that_is_read(tmp_path: Path) -> None:
    def revision() -> str:
        return provenance_of("preferences", str(tmp_path), None, path_key="data.path").revision

    downloaded(tmp_path)
    seen = [revision()]
    assert seen[0].startswith("sha256:")
    write(tmp_path / ".cache" / "huggingface" / "download" / "test.jsonl", [{"other": 2}])
    assert revision() == seen[0]
    write(tmp_path / "data" / "test-00000-of-00001.parquet", rows_of(51, 60))
    seen.append(revision())
    (tmp_path / "data" / "train-00001-of-00002.parquet").rename(tmp_path / "data" / "x.parquet")
    seen.append(revision())
    (tmp_path / "README.md").write_text("")
    seen.append(revision())
    assert len(set(seen)) == 4


def test_a_line_that_goes_from_one_split_to_the_other_makes_another_folder(tmp_path: Path) -> None:
    def revision(num_test: int) -> str:
        write(tmp_path / "test.jsonl", rows_of(0, num_test))
        write(tmp_path / "train.jsonl", rows_of(num_test, 9))
        return provenance_of("preferences", str(tmp_path), None, path_key="data.path").revision

    assert revision(3) != revision(4)


@pytest.mark.parametrize(
    ("made", "read", "left"),
    [
        (downloaded, ("train", "test"), ()),
        (saved, ("train", "test"), ()),
        (saved_alone, ("train",), ()),
        (with_validation, ("train", "test"), ("validation",)),
        (train_and_validation, ("train",), ("validation",)),
    ],
)
def test_which_splits_are_read_and_which_are_left_is_told(
    made: Callable[[Path], None], read: tuple[str, ...], left: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    made(folder)
    found = DataSource(name="preferences", place=str(folder), world=None).splits()
    assert (found.read, found.left) == (read, left)
