"""Rows of one's own are read once: the pairs lie in the cache, and every process maps them."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpa_ray.config import DataSettings
from rpa_ray.data import source
from rpa_ray.data.errors import DataError
from rpa_ray.data.load import load_train_and_test
from rpa_ray.data.order import digest
from rpa_ray.data.pair_table import PairTable
from rpa_ray.data.rows import SafePair
from rpa_ray.recipes import preferences
from rpa_ray.recipes.cell_data import CellData, _preference_data
from rpa_ray.recipes.preferences import PreferenceData, PreferenceSource

NUM_ROWS = 400


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    yield
    _preference_data.cache_clear()


def write_rows(path: Path, *, num: int = NUM_ROWS, answer: str = "yes") -> DataSettings:
    rows = [
        {"prompt": f"ask {i}", "safe": f"no {i}", "unsafe": f"{answer} {i}"} for i in range(num)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings(name="preferences", world="real", path=str(path))


def in_another_process(settings: DataSettings, cache: Path) -> PreferenceData:
    """Return what a process finds that has read nothing yet."""
    _preference_data.cache_clear()
    return CellData(settings, cache).preferences


def texts(data: PreferenceData) -> dict[str, list[SafePair]]:
    return {role: list(pairs) for role, pairs in data.roles.items()}


def folders(cache: Path) -> list[Path]:
    return sorted(cache.glob("pairs-*"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the files that were read so far."""
    found: list[str] = []

    def reading(name: str, place: str, **options: object) -> object:
        found.append(place)
        return load_train_and_test(name, place, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "load_train_and_test", reading)
    return found


def test_the_second_process_reads_no_row_and_finds_the_same(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, settings = tmp_path / "cache", write_rows(tmp_path / "rows.jsonl")
    first = in_another_process(settings, cache)
    again = in_another_process(settings, cache)
    assert reads == [settings.path]
    assert all(isinstance(pairs, PairTable) for pairs in again.roles.values())
    monkeypatch.setattr(PreferenceSource, "folder", lambda *_: None)
    unshared = in_another_process(settings, cache)
    assert reads == [settings.path] * 2
    assert sum(map(len, unshared.roles.values())) == NUM_ROWS
    for data in (first, again):
        assert texts(data) == texts(unshared)
        assert data.draw("attack", 20, seed=1, key="k") == unshared.draw(
            "attack", 20, seed=1, key="k"
        )
        assert (data.key, data.manifest) == (unshared.key, unshared.manifest)
        assert (data.provenance, data.is_complete) == (unshared.provenance, True)
        assert data.restricted_prompts == unshared.restricted_prompts


def test_rows_that_changed_are_read_anew(tmp_path: Path, reads: list[str]) -> None:
    cache, path = tmp_path / "cache", tmp_path / "rows.jsonl"
    settings = write_rows(path)
    before = in_another_process(settings, cache)
    write_rows(path, answer="certainly")
    after = in_another_process(settings, cache)
    assert len(reads) == len(folders(cache)) == 2
    assert before.key != after.key
    assert all(pair.unsafe.startswith("certainly") for pair in after.roles["attack"])
    assert all(pair.unsafe.startswith("yes") for pair in before.roles["attack"])


def test_the_same_rows_of_another_file_are_those_of_that_file(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "copy.jsonl"
    for settings in (write_rows(tmp_path / "rows.jsonl"), write_rows(path)):
        found = in_another_process(settings, cache)
        assert found.provenance.source == settings.path


def test_broken_rows_leave_nothing_behind(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "safe": "same", "unsafe": "same"}) + "\n")
    settings = DataSettings(name="preferences", world="real", path=str(path))
    for _ in range(2):
        with pytest.raises(DataError, match="two different texts"):
            in_another_process(settings, cache)
    assert not folders(cache)


@pytest.mark.parametrize("harm", ["torn index", "torn table", "no table", "no room"])
def test_a_folder_that_is_not_whole_is_said_and_not_used(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, settings = tmp_path / "cache", write_rows(tmp_path / "rows.jsonl")
    whole = in_another_process(settings, cache)
    (folder,) = folders(cache)
    table = folder / "attack.arrow"
    match harm:
        case "torn index":
            (folder / "index.json").write_text('{"roles": [')
        case "torn table":
            table.write_bytes(table.read_bytes()[:-100])
        case "no table":
            table.unlink()
        case "no room":
            cache = tmp_path / "other"
            monkeypatch.setattr(preferences, "write_pairs", _no_room)
    found = in_another_process(settings, cache)
    assert found.manifest == whole.manifest
    assert texts(found)["attack"][0].prompt.startswith("ask")
    assert {"torn index": "must be JSON", "no room": "No space left"}.get(
        harm, "is not whole"
    ) in caplog.text
    assert not any(path.name.startswith(".") for path in cache.iterdir())


def test_the_embedded_sets_are_not_copied(world_cache: Path) -> None:
    pairs = in_another_process(DataSettings(), world_cache).roles["attack"]
    assert pairs
    assert isinstance(pairs, tuple)


def test_the_version_stands_for_these_pairs(tmp_path: Path) -> None:
    """Pairs or roles of the same rows that change need another PAIRS_VERSION."""
    found = in_another_process(write_rows(tmp_path / "rows.jsonl"), tmp_path / "cache")
    ids = digest(*(pair.id for pairs in found.roles.values() for pair in pairs))
    assert (preferences.PAIRS_VERSION, ids[:16]) == (3, "a8997e46c2098cb1")


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
