import os
from pathlib import Path

from rpa_ray.recipes.content import content_key


def test_a_pipe_is_named_as_it_is_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    assert content_key(tmp_path / "rows.jsonl") == str(tmp_path / "rows.jsonl")


def test_what_cannot_be_read_is_named_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("/proc/self/mem")  # opens, and gives an error when read
    assert content_key(tmp_path / "rows.jsonl") == str(tmp_path / "rows.jsonl")
    assert content_key(tmp_path) == str(tmp_path)
