import os
from pathlib import Path

from rpa_ray.recipes.content import content_key


def test_a_pipe_is_named_as_it_is_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    assert content_key(tmp_path / "rows.jsonl") == str(tmp_path / "rows.jsonl")
