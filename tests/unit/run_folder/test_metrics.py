import json
from pathlib import Path

import pytest
from hostile import every_hostile_text

from rpa_ray.run_folder.files import JsonLines, write_json, write_text


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    log = JsonLines(path, enabled=True)
    log.write({"step": 0, "loss": 0.5})
    assert read(path) == [{"step": 0, "loss": 0.5}]
    log.write({"step": 1, "loss": 0.25})
    log.close()
    assert len(read(path)) == 2


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl", enabled=True)
    log.write({"a": float("nan"), "b": float("-inf"), "c": 1 / 3})
    assert read(tmp_path / "m.jsonl") == [{"a": None, "b": None, "c": 0.33333333}]


@pytest.mark.parametrize(("keep", "steps"), [(0, [9]), (2, [0, 1, 9]), (7, [0, 1, 2, 9])])
def test_a_file_is_continued_after_the_lines_that_are_kept(
    tmp_path: Path, keep: int, steps: list[int]
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(3)))
    log = JsonLines(path, enabled=True)
    assert log.num_lines == 3
    log.rewind(keep)
    log.write({"step": 9})
    assert [line["step"] for line in read(path)] == steps
    assert log.num_lines == len(steps)


def test_a_line_cut_short_by_a_kill_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    log = JsonLines(path, enabled=True)
    assert log.num_lines == 2
    log.rewind(2)
    log.write({"step": 2})
    assert [line["step"] for line in read(path)] == [0, 1, 2]


def test_a_log_goes_back_to_its_saved_state(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl", enabled=True)
    log.write({"step": 0})
    state = log.state_dict()
    log.write({"step": 1})
    log.close()
    later = JsonLines(tmp_path / "m.jsonl", enabled=True)
    later.load_state_dict(state)
    later.write({"step": 5})
    assert [line["step"] for line in read(tmp_path / "m.jsonl")] == [0, 5]


def test_a_score_inside_a_record_that_is_not_finite_is_null(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "s.jsonl", enabled=True)
    log.write({"scores": {"reward": float("nan"), "judge": 0.5}})
    assert (tmp_path / "s.jsonl").read_text() == '{"scores": {"reward": null, "judge": 0.5}}\n'


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl", enabled=False)
    log.write({"step": 0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_json_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    write_json(path, [1])
    write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n "b": 1,\n "a": 2\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == [1]


def test_json_has_null_for_what_is_not_finite_and_all_digits_of_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    nan, third = float("nan"), 1 / 3
    write_json(path, {"ppl_median": {"mean": nan, "n": 4}, "rows": [third, (float("inf"), 1e-12)]})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "ppl_median": {"mean": None, "n": 4},
        "rows": [third, [None, 1e-12]],
    }


def test_a_list_in_a_line_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl", enabled=True)
    log.write({"rewards": [float("nan"), 0.5]})
    assert (tmp_path / "m.jsonl").read_text() == '{"rewards": [null, 0.5]}\n'


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "results.json").symlink_to(other)
    write_text(tmp_path / "results.json", "new")
    assert other.read_text() == "mine"
    assert not (tmp_path / "results.json").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "results.json"]
    assert (tmp_path / "results.json").read_text() == "new"


@every_hostile_text
def test_any_text_can_be_written(tmp_path: Path, text: str) -> None:
    write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_bytes() == text.encode("utf-8", "backslashreplace")
