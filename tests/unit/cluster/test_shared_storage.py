import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayTaskError

from rpa_ray.cluster import storage
from rpa_ray.cluster.nodes import Node
from rpa_ray.cluster.storage import echo, require_shared
from rpa_ray.config import ConfigError

NODES = [Node(id=str(i), address=f"192.0.2.{i}", has={}, free={}) for i in (1, 2)]
Seen = Callable[[str], object]
"""What a node answers when it is asked about a path of the driver's."""


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seen], None]:
    """Return what has the first node share every folder, and the second answer as it is told."""
    monkeypatch.setattr(storage, "living_nodes", lambda: NODES)
    monkeypatch.setattr(storage, "_SEEN_WITHIN_S", 0.01)

    def second(answers: Seen) -> None:
        def ask(
            nodes: list[Node], question: Any, path: str, *, limit_s: float
        ) -> list[tuple[Node, object]]:
            assert (nodes, question, limit_s) == (NODES, echo, 5.0)
            return list(zip(NODES, (echo(path), answers(path)), strict=True))

        monkeypatch.setattr(storage, "ask_nodes", ask)

    return second


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        require_shared({"--output": folder}, 5.0)
    assert caught.value.key == "--output"
    assert list(folder.iterdir()) == []
    return str(caught.value)


def test_folders_that_every_node_shares_are_taken_and_left_as_they_were(
    nodes: Callable[[Seen], None], tmp_path: Path
) -> None:
    nodes(echo)
    (tmp_path / "kept").mkdir()
    folders = {"--output": tmp_path, "RPA_RAY_CACHE": tmp_path / "cache"}
    assert require_shared(folders, 5.0) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cache", "kept"]


def test_a_node_that_does_not_see_the_folder_is_named(
    nodes: Callable[[Seen], None], tmp_path: Path
) -> None:
    def has_an_empty_one(path: str) -> object:
        try:
            return echo(str(tmp_path / "elsewhere" / Path(path).name))
        except OSError as error:
            return RayTaskError("echo", "Traceback (most recent call last)", error)

    nodes(has_an_empty_one)
    told = refused(tmp_path / "output")
    assert "--output must lie on storage that every node of the Ray cluster shares" in told
    assert "Node 192.0.2.2: [Errno 2] No such file or directory" in told


def test_a_node_whose_answer_stays_on_its_own_disk_is_named(
    nodes: Callable[[Seen], None], tmp_path: Path
) -> None:
    def writes_elsewhere(path: str) -> object:
        own = tmp_path / "elsewhere" / Path(path).name
        own.parent.mkdir()
        shutil.copy(path, own)
        return echo(str(own))

    nodes(writes_elsewhere)
    assert "what it wrote is not seen by the driver" in refused(tmp_path / "output")


def test_a_node_that_writes_another_word_is_named(
    nodes: Callable[[Seen], None], tmp_path: Path
) -> None:
    def writes_another_word(path: str) -> object:
        name = echo(path)
        Path(path).with_name(name).write_text("another")
        return name

    nodes(writes_another_word)
    assert "Node 192.0.2.2: what it wrote is not seen" in refused(tmp_path)


def test_a_node_that_does_not_answer_is_named_with_the_limit(
    nodes: Callable[[Seen], None], tmp_path: Path
) -> None:
    nodes(lambda path: GetTimeoutError())
    assert "Node 192.0.2.2: it did not answer within 5 s (cluster.timeout_s)" in refused(tmp_path)
