from dataclasses import replace
from pathlib import Path

import pytest

from rpa_ray.recipes.model import JobSettings, ModelKind, ModelRecipe, RowKind, Rows, in_order


def recipe(name: str, start: ModelRecipe | str | None = None) -> ModelRecipe:
    return ModelRecipe(
        id=name,
        kind=ModelKind.CAUSAL,
        start=start,
        tokenizer="somewhere/tokenizer",
        tokenizer_key="world-1",
        rows=Rows(kind=RowKind.ALIGNMENT, data_key="world-1", settings={"rho": 1.0}),
        job=JobSettings(num_steps=10, batch_size=4, learning_rate=1e-3, dtype="float32"),
        seed=0,
        architecture={} if start else {"hidden_size": 8},
    )


def make(made: ModelRecipe, cache: Path) -> None:
    folder = made.folder(cache)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


BASE = recipe("base")
CHAT = recipe("chat", BASE)


@pytest.mark.parametrize(
    "other",
    [
        replace(CHAT, seed=1),
        replace(CHAT, tokenizer_key="world-2"),
        replace(CHAT, kind=ModelKind.REWARD),
        replace(CHAT, job=replace(CHAT.job, num_steps=11)),
        replace(CHAT, job=replace(CHAT.job, dtype="bfloat16")),
        replace(CHAT, job=replace(CHAT.job, rounded=True)),
        replace(CHAT, rows=replace(CHAT.rows, data_key="world-2")),
        replace(CHAT, rows=replace(CHAT.rows, settings={"rho": 0.5})),
        replace(CHAT, start=replace(BASE, seed=1)),
        replace(CHAT, start="some/folder"),
        replace(CHAT, architecture={"hidden_size": 16}),
        replace(CHAT, ranked_by=BASE),
        replace(CHAT, ranked_by="some/folder"),
    ],
)
def test_whatever_changes_the_weights_changes_the_folder(
    other: ModelRecipe, tmp_path: Path
) -> None:
    assert other.folder(tmp_path) != CHAT.folder(tmp_path)


def test_the_model_that_ranks_the_pairs_counts_with_all_that_made_it() -> None:
    keys = {
        replace(CHAT, ranked_by=ranker).key()
        for ranker in (None, BASE, replace(BASE, seed=1), "one/folder", "another/folder")
    }
    assert len(keys) == 5


def test_models_that_were_made_before_are_found_again() -> None:
    # Names of folders in caches that exist: a change here has everything made anew.
    assert (BASE.key(), CHAT.key()) == ("779d8ded75de", "668aac57436c")


def test_where_the_tokenizer_lies_does_not_change_the_folder(tmp_path: Path) -> None:
    moved = replace(CHAT, tokenizer="elsewhere", start=replace(BASE, tokenizer="elsewhere"))
    assert moved.folder(tmp_path) == CHAT.folder(tmp_path)


def test_what_is_made_has_its_folder_whole(tmp_path: Path) -> None:
    assert not BASE.is_made(tmp_path)
    make(BASE, tmp_path)
    assert BASE.is_made(tmp_path)
    assert not CHAT.is_made(tmp_path)


def test_an_adapter_is_made_once_its_own_folder_is_there(tmp_path: Path) -> None:
    adapter = replace(CHAT, kind=ModelKind.ADAPTER, architecture={"rank": 4, "alpha": 8})
    make(adapter, tmp_path)
    assert not adapter.is_made(tmp_path)
    (adapter.folder(tmp_path) / "adapter_config.json").write_text("{}")
    assert adapter.is_made(tmp_path)
    assert adapter.key() != replace(adapter, architecture={"rank": 4, "alpha": 4}).key()


def test_a_start_comes_before_what_builds_on_it_and_each_model_once(tmp_path: Path) -> None:
    judge = recipe("judge", BASE)
    assert in_order([CHAT, judge, BASE, CHAT], tmp_path) == [BASE, CHAT, judge]


def test_the_model_that_ranks_the_pairs_is_made_before_what_they_train(tmp_path: Path) -> None:
    reward = replace(recipe("reward", BASE), ranked_by=CHAT)
    assert in_order([reward], tmp_path) == [BASE, CHAT, reward]
    make(CHAT, tmp_path)
    assert in_order([reward], tmp_path) == [BASE, reward]


def test_what_is_made_is_left_out_with_what_only_it_needed(tmp_path: Path) -> None:
    make(CHAT, tmp_path)
    assert in_order([CHAT], tmp_path) == []
    make(BASE, tmp_path)
    assert in_order([CHAT, recipe("judge", BASE)], tmp_path) == [recipe("judge", BASE)]


def test_a_folder_to_start_from_counts_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model.safetensors").write_bytes(b"before")
    started = replace(CHAT, start=str(tmp_path / "one"))
    before = started.key()
    (tmp_path / "one").rename(tmp_path / "moved")
    assert replace(CHAT, start=str(tmp_path / "moved")).key() == before
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model.safetensors").write_bytes(b"after.")
    assert started.key() != before
