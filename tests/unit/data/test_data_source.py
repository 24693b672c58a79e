import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from rpa_ray.config import ConfigError, DataSettings
from rpa_ray.data import hub
from rpa_ray.data.errors import DataError
from rpa_ray.data.source import UNPINNED, DataSource, _hash_of, check_source, provenance_of
from rpa_ray.plan import parse_tree

COMMIT = "f" * 40


@pytest.fixture
def _hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a Hub that knows every data set, at one commit."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub._commit.cache_clear()
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT)
    )
    yield
    hub._commit.cache_clear()


def refusal(**settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_source(parse_tree({"data": settings}).data)
    return str(caught.value)


def key_of(
    name: str, place: str, subset: str | None = None, columns: dict[str, str] | None = None
) -> str:
    mapped = tuple((columns or {}).items())
    return DataSource(name=name, place=place, world=None, columns=mapped, subset=subset).key()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"name": "safe_rlhf", "pairs": "all_pairs"},
        {"name": "beavertails", "world": "real"},
        {"name": "beavertails", "world": "real", "subset": "30k"},
        {"name": "tldr"},
        {"name": "tldr", "world": "real", "safety_path": "safety.parquet"},
        {"name": "safe_rlhf", "world": "real", "columns": {"prompt": "query"}},
        {
            "name": "preferences",
            "world": "real",
            "path": "mine.jsonl",
            "columns": {"safe": "unsafe", "unsafe": "safe"},
        },
    ],
)
def test_a_source_that_can_be_read_passes(settings: dict[str, object]) -> None:
    check_source(parse_tree({"data": settings}).data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "preferences"},
            "world must be real where data.name is preferences, got 'embedded'",
        ),
        (
            {"name": "preferences", "world": "real"},
            "path must be given where data.name is preferences, got None",
        ),
        ({"path": "x"}, "path must be left out where data.world is embedded, got 'x'"),
        ({"subset": "30k"}, "subset must be left out where data.world is embedded, got '30k'"),
        (
            {"columns": {"prompt": "q"}},
            "columns must be left out where data.world is embedded, got {'prompt': 'q'}",
        ),
        (
            {"world": "real", "name": "safe_rlhf", "subset": "30k"},
            "subset must be left out except for beavertails on the Hub, got '30k'",
        ),
        (
            {"world": "real", "path": ".", "subset": "30k"},
            "subset must be left out except for beavertails on the Hub, got '30k'",
        ),
        (
            {"pairs": "all_pairs"},
            "pairs must be mixed_only where data.name is beavertails, got 'all_pairs'",
        ),
        (
            {"world": "real", "columns": {"respons": "answer"}},
            "columns must map columns of ['prompt', 'response', 'is_safe', 'category'], "
            "got 'respons'. Did you mean 'response'?",
        ),
        (
            {"world": "real", "columns": {"prompt": "text", "response": "text"}},
            "columns.response must name a column of its own, other than that of 'prompt', "
            "got 'text'",
        ),
        (
            {"world": "real", "columns": {"prompt": "response"}},
            "columns.prompt must name a column of its own, other than that of 'response', "
            "got 'response'",
        ),
    ],
)
def test_settings_of_a_source_that_contradict_each_other_are_refused(
    settings: dict[str, object], message: str
) -> None:
    assert refusal(**settings).startswith(f"data.{message}")


@pytest.mark.usefixtures("_hub")
def test_the_key_of_a_hub_data_set_holds_the_commit() -> None:
    repo = "PKU-Alignment/PKU-SafeRLHF"
    assert key_of("safe_rlhf", repo) == f"safe_rlhf:{repo}@{COMMIT}"
    assert key_of("beavertails", "a/b", "30k") == f"beavertails:a/b@{COMMIT}/30k"
    found = provenance_of("safe_rlhf", f"{repo}@v0", None, path_key="data.path")
    assert (found.source, found.revision) == (repo, COMMIT)


def test_offline_the_key_says_that_no_commit_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert key_of("safe_rlhf", "a/b") == f"safe_rlhf:a/b@{UNPINNED}"
    assert key_of("safe_rlhf", f"a/b@{COMMIT}") == f"safe_rlhf:a/b@{COMMIT}"
    assert "HF_HUB_OFFLINE" in UNPINNED


def test_the_key_of_a_file_is_its_content_and_the_columns_read(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / f"{name}.jsonl" for name in ("one", "copy", "other"))
    one.write_text(json.dumps({"prompt": "a"}))
    copy.write_bytes(one.read_bytes())
    other.write_text(json.dumps({"prompt": "b"}))
    assert key_of("preferences", str(one)) == key_of("preferences", str(copy))
    columns = {"prompt": "question"}
    keys = {
        key_of("preferences", str(one)),
        key_of("preferences", str(other)),
        key_of("safe_rlhf", str(one)),
        key_of("preferences", str(one), columns=columns),
    }
    assert len(keys) == 4


def test_a_file_that_cannot_be_read_is_refused_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.symlink_to("/proc/self/mem")  # opens, and gives an error when read
    with pytest.raises(DataError) as caught:
        provenance_of("preferences", str(file), None, path_key="data.path")
    assert str(caught.value) == (
        f"data.path must be files that can be read, got {file} (Input/output error). "
        "Check the file and its permissions."
    )


def test_new_settings_are_off_by_default() -> None:
    data = DataSettings()
    assert (data.columns, data.subset, data.pairs) == ({}, "330k", "mixed_only")


def test_files_are_hashed_in_blocks_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"x" * 3 * 2**20)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(Path, "read_bytes", None)
    _hash_of.cache_clear()
    revisions = [
        provenance_of("preferences", str(file), None, path_key="data.path").revision
        for _ in range(2)
    ]
    assert revisions == [f"sha256:{expected}"] * 2
    assert _hash_of.cache_info().misses == 1
    file.write_bytes(b"y" * 3 * 2**20)
    assert provenance_of("preferences", str(file), None, path_key="data.path").revision not in (
        revisions
    )
