"""What a reader finds when the process died while a file was written, at every stage of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crashes import DELETING, STAGES, crash

from rpa_ray.run_folder import files
from rpa_ray.run_folder.files import (
    JsonLines,
    read_json,
    read_lines,
    whole_folder,
    write_json,
    write_parquet,
    write_text,
)

Write: TypeAlias = Callable[[Path, str], None]
Read: TypeAlias = Callable[[Path], str]


def write_folder(path: Path, content: str) -> None:
    with whole_folder(path, replaces=True) as unfinished:
        (unfinished / "config.json").write_text(content)


def write_record(path: Path, content: str) -> None:
    write_json(path, {"content": content})


def read_record(path: Path) -> str:
    record = read_json(path, dict)
    assert record is not None
    return str(record["content"])


def write_table(path: Path, content: str) -> None:
    write_parquet(path, pa.table({"content": [content]}))


def read_table(path: Path) -> str:
    return str(pq.read_table(path)["content"][0])


KINDS: dict[str, tuple[Write, Read]] = {
    "evaluation.json": (write_record, read_record),
    "config.yaml": (write_text, lambda path: path.read_text()),
    "answers.parquet": (write_table, read_table),
    "attacked_model": (write_folder, lambda path: (path / "config.json").read_text()),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_there_stays_whole_until_the_new_takes_its_place(
    kind: str, stage: str, tmp_path: Path
) -> None:
    (write, read), path = KINDS[kind], tmp_path / kind
    write(path, "old" * 50)
    crash(stage, path, lambda: write(path, "new" * 50))
    if (kind, stage) == ("attacked_model", "written"):
        # No file system takes a folder for another in one: there is none for a moment.
        assert not path.exists()
    else:
        assert read(path) == ("new" if stage == "replaced" else "old") * 50
    write(path, "again")
    assert read(path) == "again"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_where_there_was_none_there_is_none_until_it_is_whole(
    kind: str, stage: str, tmp_path: Path
) -> None:
    (write, read), path = KINDS[kind], tmp_path / kind
    crash(stage, path, lambda: write(path, "new" * 50))
    assert path.exists() == (stage == "replaced")
    if path.exists():
        assert read(path) == "new" * 50


def test_no_folder_is_seen_half_deleted(tmp_path: Path) -> None:
    path = tmp_path / "attacked_model"
    write_folder(path, "old")
    crash(DELETING, path, lambda: write_folder(path, "new"))
    assert not path.exists()


@pytest.mark.parametrize("num_bytes", range(0, 40, 3))
def test_a_log_is_read_and_goes_on_wherever_its_last_line_was_cut(
    tmp_path: Path, num_bytes: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(2))
    path.write_text(whole[:num_bytes])
    num_whole = whole[:num_bytes].count("\n")
    assert [line["step"] for line in read_lines(path)] in (
        list(range(num_whole)),
        list(range(num_whole + 1)),  # all but its end was written
    )
    log = JsonLines(path, enabled=True)
    log.write({"step": 9})
    assert [line["step"] for line in read_lines(path)] == [*range(num_whole), 9]


def test_a_broken_line_that_is_not_the_last_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 0\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl line 1 must be JSON, got .*\. Run it again"):
        read_lines(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must be JSON, got expecting value at line 1"),
        (b'{"status": "o', "must be JSON, got unterminated string"),
        (bytes(64), "must be JSON, got "),
        (b"\xff\xfe\xfa", "must be JSON, got "),
        (b"[" * 10**5, "must be nested less deeply"),
        (b"[]", "must hold a dict, got list"),
    ],
)
def test_a_torn_record_counts_as_none_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    assert read_json(path, dict) is None
    assert read_json(path, dict) is None
    (line,) = caplog.messages
    assert line.startswith(f"{path} {reason}")
    assert line.endswith("It counts as not written.") and "\n" not in line


def test_no_record_is_no_cause_for_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_json(tmp_path / "evaluation.json", dict) is None
    assert caplog.messages == []


class Diary:
    """Writes down in which order files come to disk and take their names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[tuple[str, Path]] = []
        sync, replace = os.fsync, os.replace

        def told_sync(handle: int) -> None:
            sync(handle)
            self.lines.append(("on disk", Path(os.readlink(f"/proc/self/fd/{handle}"))))

        def told_replace(old: Path, new: Path) -> None:
            replace(old, new)
            self.lines.append(("named", Path(new)))

        monkeypatch.setattr(os, "fsync", told_sync)
        monkeypatch.setattr(os, "replace", told_replace)


@pytest.mark.parametrize("kind", ["evaluation.json", "config.yaml", "answers.parquet"])
def test_a_file_is_on_disk_before_it_takes_its_name_and_its_name_after(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, diary = tmp_path / kind, Diary(monkeypatch)
    KINDS[kind][0](path, "new")
    (first, partial), *rest = diary.lines
    assert first == "on disk" and partial.parent == tmp_path and partial != path
    assert rest == [("named", path), ("on disk", tmp_path)]


def test_a_folder_is_on_disk_with_all_in_it_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary(monkeypatch)
    with whole_folder(tmp_path / "model") as partial:
        (partial / "data").mkdir()
        (partial / "data" / "a").write_text("a")
    named = diary.lines.index(("named", tmp_path / "model"))
    before = {path for _, path in diary.lines[:named]}
    assert before == {partial, partial / "data", partial / "data" / "a"}
    assert diary.lines[named + 1 :] == [("on disk", tmp_path)]


def test_the_lines_of_a_log_are_on_disk_when_its_state_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, diary = JsonLines(tmp_path / "samples.jsonl", enabled=True), Diary(monkeypatch)
    log.write({"step": 0})
    assert log.state_dict() == {"num_lines": 1}
    assert diary.lines == [("on disk", tmp_path / "samples.jsonl")]


def test_nobody_can_guess_under_which_name_a_file_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary(monkeypatch)
    for _ in range(2):
        write_text(tmp_path / "results.csv", "")
    begun = {path for what, path in diary.lines if what == "on disk"} - {tmp_path}
    assert len(begun) == 2
    assert all(path.name.startswith(".results.csv.") for path in begun)


def test_a_file_that_cannot_be_finished_leaves_the_old_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "summary.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_file_system_need_not_put_the_names_of_a_folder_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool
) -> None:
    def refused(handle: int) -> None:
        raise OSError(22, "Invalid argument")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refused)
    if is_folder:
        files.sync(tmp_path)
    else:
        with pytest.raises(OSError, match="Invalid argument"):
            files.sync(tmp_path / "file")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_a_folder_is_open_to_others_as_the_user_wants_it(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        write_folder(tmp_path / "model", "")
        write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == mode
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode & 0o666


def test_a_folder_that_another_process_made_first_stays(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "world") as unfinished:
        (unfinished / "file").write_text("second")
        write_folder(tmp_path / "world", "first")
    assert (tmp_path / "world" / "config.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_a_name_of_any_length_can_be_written(tmp_path: Path) -> None:
    name = "\N{GREEK SMALL LETTER ALPHA}" * 127
    write_text(tmp_path / name, "text")
    write_folder(tmp_path / name[1:], "")
    assert {path.name for path in tmp_path.iterdir()} == {name, name[1:]}
