"""Models of the Hub: the commit that an id names, and the folder that is loaded."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from rpa_ray.config import ConfigError
from rpa_ray.data import hub_model
from rpa_ray.data.hub_model import (
    MODEL_FILES,
    hub_models,
    model_folder,
    pinned_model,
    with_pinned_models,
)
from rpa_ray.plan import parse_tree

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub_model._commit.cache_clear()
    yield
    hub_model._commit.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Make a Hub that knows every model at one commit; return what it was asked."""
    questions: list[tuple[str, str | None]] = []

    def model_info(
        self: object, repo: str, *, revision: str | None, timeout: float
    ) -> SimpleNamespace:
        questions.append((repo, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return questions


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Forbid to ask the Hub, with one model in the local cache; return its folder there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--owner--name"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_model_is_pinned_to_the_commit_that_the_hub_names(
    asked: list[tuple[str, str | None]],
) -> None:
    assert pinned_model("owner/name", "model.path") == f"owner/name@{COMMIT}"
    assert pinned_model("owner/name@v1", "model.path") == f"owner/name@{COMMIT}"
    assert asked == [("owner/name", None), ("owner/name", "v1")]


def test_the_hub_is_asked_once_of_a_model_wherever_it_is_named(
    asked: list[tuple[str, str | None]],
) -> None:
    for key in ("model.path", "attack.reference"):
        pinned_model("owner/name", key)
    assert asked == [("owner/name", None)]


def test_offline_the_local_cache_tells_the_commit(
    cached: Path, asked: list[tuple[str, str | None]]
) -> None:
    assert pinned_model("owner/name", "model.path") == f"owner/name@{COMMIT}"
    assert pinned_model(f"owner/name@{COMMIT}", "model.path") == f"owner/name@{COMMIT}"
    with pytest.raises(ConfigError, match="not in the local cache, and HF_HUB_OFFLINE is set"):
        pinned_model("owner/name@v1", "model.path")
    assert asked == []


def test_every_key_that_names_a_model_gets_a_commit_and_data_do_not(
    asked: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    judge = {"path": "a/judge", "trained": True}
    tree = {
        "model": {"path": "a/policy@v1"},
        "attack": {"name": "ppo", "reference": "a/reference"},
        "defence": [{"name": "random_anchor", "model": "a/anchor"}, "refusal_loss"],
        "data": {
            "world": "real",
            "path": "a/rows",
            "helpful_path": "a/dialogues",
            "safe_answers": "generated",
            "refusals": {"model": "a/writer", "judge": "a/filter"},
            "reward_model": {"path": str(tmp_path)},
        },
        "evaluation": {
            "judge": judge,
            "second_judge": judge | {"path": "a/second"},
            "perplexity_model": "a/perplexity",
            "helpfulness_model": "a/helpfulness",
        },
    }
    pinned = with_pinned_models(parse_tree(tree))
    assert hub_models(pinned) == {
        key: f"a/{name}@{COMMIT}"
        for key, name in {
            "model.path": "policy",
            "attack.reference": "reference",
            "defence.model": "anchor",
            "data.refusals.model": "writer",
            "data.refusals.judge": "filter",
            "evaluation.judge.path": "judge",
            "evaluation.second_judge.path": "second",
            "evaluation.perplexity_model": "perplexity",
            "evaluation.helpfulness_model": "helpfulness",
        }.items()
    }
    data = pinned.data
    assert (data.path, data.helpful_path) == ("a/rows", "a/dialogues")
    assert data.reward_model.path == str(tmp_path)
    assert len(asked) == 9


def test_embedded_models_and_folders_ask_nobody(asked: list[tuple[str, str | None]]) -> None:
    settings = parse_tree({"defence": {"name": "random_anchor", "model": "base"}, "attack": "sft"})
    assert with_pinned_models(settings) == settings
    assert asked == []


def test_what_is_loaded_is_the_pinned_commit_without_code_and_pickles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched: list[tuple[str, str, list[str]]] = []

    def snapshot_download(
        repo: str, *, revision: str, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        assert not local_files_only
        fetched.append((repo, revision, allow_patterns))
        return "/cache/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert model_folder(f"owner/name@{COMMIT}") == "/cache/snapshot"
    assert model_folder(str(tmp_path)) == str(tmp_path)
    assert fetched == [("owner/name", COMMIT, list(MODEL_FILES))]
    assert not {".py", ".bin", ".pt", ".pkl"} & {Path(pattern).suffix for pattern in MODEL_FILES}


def test_offline_the_folder_is_that_of_the_local_cache(cached: Path) -> None:
    assert model_folder(f"owner/name@{COMMIT}") == str(cached)


def answer_with(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    *,
    after: threading.Event | None = None,
    limit_s: float = 30.0,
) -> None:
    """Have the Hub answer at once, or after an event."""

    def model_info(self: object, repo: str, *, revision: str | None, timeout: float) -> None:
        if after is not None:
            after.wait()
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(hub_model, "HUB_LIMIT_S", limit_s)


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        pinned_model("nobody/nothing", "evaluation.judge.path")
    assert str(caught.value).startswith("evaluation.judge.path must be a folder with a model, or")
    return str(caught.value)


def test_a_model_that_the_hub_does_not_give_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, OSError("first\nno route to host"))
    assert "Hub: no route to host." in refusal()


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Return what is set when the test is over."""
    ended = threading.Event()
    yield ended
    ended.set()


def test_a_hub_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    answer_with(monkeypatch, None, after=ended, limit_s=0.05)
    assert "Hub: no answer within 0.05 s." in refusal()
