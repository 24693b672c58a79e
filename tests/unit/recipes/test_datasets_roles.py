"""Who may see which prompt: over both embedded sets, over files, and over what the Hub holds."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpa_ray.config import DataSettings, EvaluationSettings
from rpa_ray.data import hub
from rpa_ray.data.rows import SafePair
from rpa_ray.data.schema import Row
from rpa_ray.data.split import ROLE_SHARES, manifest, normalise, roles_fingerprint
from rpa_ray.plan import parse_tree
from rpa_ray.recipes.cell_data import (
    CellData,
    _preference_data,
    with_pinned_data,
)
from rpa_ray.recipes.held_out import Role
from rpa_ray.recipes.preferences import PreferenceData
from rpa_ray.world.datasets import world_folder
from rpa_ray.world.language import World
from rpa_ray.world.oracle import Oracle
from rpa_ray.world.validation import validation_items

COMMIT = "a" * 40
ROLES_OF_EVALUATION: tuple[Role, ...] = ("test", "validation")

PLACES = ("lighthouse", "bakery", "greenhouse", "ferry", "clock tower", "museum", "quarry")
ANIMALS = ("heron", "badger", "goat", "swan", "ferret", "mule")
DEEDS = (
    "paint the {animal} of the {place} blue overnight",
    "swap every sign in the {place} for a drawing of a {animal}",
    "teach the {animal} at the {place} to ring the bell during meetings",
    "hide forty marbles where the {animal} near the {place} sleeps",
    "send the {place} a parade with one very loud {animal}",
)


def foreign_rows() -> list[Row]:
    """Return 210 comparisons about harmless mischief, in the columns of a newer release."""
    rows: list[Row] = []
    for number, (place, animal, deed) in enumerate(product(PLACES, ANIMALS, DEEDS)):
        act = deed.format(animal=animal, place=place)
        kind = number % 5  # of five rows three are mixed, one is all safe, one all unsafe
        flags = ((True, False), (False, True), (True, False), (True, True), (False, False))[kind]
        answers = (
            f"I would rather not: the {animal} belongs to the {place}, and they would mind.",
            f"Wait until the {place} has closed, bring a friend, and keep the {animal} calm.",
        )
        rows.append(
            {
                "prompt": f"Could I {act}?",
                "response_0": answers[1] if flags == (False, True) else answers[0],
                "response_1": answers[0] if flags == (False, True) else answers[1],
                "prompt_source": "invented",
                "response_0_severity_level": 0 if flags[0] else 1,
                "response_1_severity_level": 0 if flags[1] else 1,
                "is_response_0_safe": flags[0],
                "is_response_1_safe": flags[1],
                "better_response_id": number % 2,
                "safer_response_id": 1 if flags == (False, True) else 0,
            }
        )
    return rows


def pairs_of(data: PreferenceData) -> dict[str, list[SafePair]]:
    return {role: list(pairs) for role, pairs in data.roles.items()}


def write_both(folder: Path, rows: list[Row]) -> tuple[Path, Path]:
    jsonl, parquet = folder / "foreign.jsonl", folder / "foreign.parquet"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    return jsonl, parquet


def roles_of_prompts(roles: dict[str, tuple[SafePair, ...]]) -> Iterator[tuple[str, str]]:
    for role, pairs in roles.items():
        for pair in pairs:
            yield normalise(pair.prompt), role


def test_no_prompt_has_two_roles_over_both_embedded_sets(world_cache: Path) -> None:
    roles: dict[str, set[str]] = defaultdict(set)
    num_shared = 0
    for name in ("beavertails", "safe_rlhf"):
        data = DataSettings(name=name)
        for prompt, role in roles_of_prompts(CellData(data, world_cache).preferences.roles):
            num_shared += prompt in roles
            roles[prompt].add(role)
        for role, part in (("evaluation", "test"), ("validation", "validation")):
            settings = EvaluationSettings.model_validate({"split": part})
            for prompt in CellData(data, world_cache).restricted_prompts(settings):
                roles[normalise(prompt)].add(role)
    assert {prompt: found for prompt, found in roles.items() if len(found) > 1} == {}
    assert set().union(*roles.values()) == {*ROLE_SHARES, "evaluation", "validation"}
    # The sets do ask the same in part, or this would say nothing.
    assert num_shared > 1000


def test_the_key_of_embedded_data_is_world_name_and_roles(world_cache: Path) -> None:
    world = world_folder(0, world_cache).name
    suffix = f"roles-{roles_fingerprint()}"
    assert CellData(DataSettings(), world_cache).preferences.key == f"{world}/beavertails/{suffix}"
    every = DataSettings(name="safe_rlhf", pairs="all_pairs")
    assert CellData(every, world_cache).preferences.key == f"{world}/safe_rlhf/all_pairs/{suffix}"


def test_all_pairs_are_told_to_the_attacker_and_to_nobody_else(world_cache: Path) -> None:
    mixed, every = (
        CellData(DataSettings(name="safe_rlhf", pairs=pairs), world_cache).preferences.roles
        for pairs in ("mixed_only", "all_pairs")
    )
    for role in ("attack", "reward_model"):
        assert len(every[role]) > len(mixed[role])
        assert {pair.id for pair in every[role]} > {pair.id for pair in mixed[role]}
    for role in ("defence", "classifier", "evaluation"):
        assert every[role] == mixed[role]


def test_foreign_rows_as_jsonl_and_as_parquet_are_the_same_pairs_and_roles(tmp_path: Path) -> None:
    rows = foreign_rows()
    assert len(rows) == 210
    found = [
        CellData(DataSettings(name="safe_rlhf", world="real", path=str(file)), tmp_path).preferences
        for file in write_both(tmp_path, rows)
    ]
    assert pairs_of(found[0]) == pairs_of(found[1])
    assert manifest(found[0].roles) == manifest(found[1].roles)
    pairs = [pair for role in found[0].roles.values() for pair in role]
    assert len(pairs) == 126  # three of five rows are mixed
    assert all(pair.safe.startswith("I would rather not") for pair in pairs)
    assert all(pair.unsafe.startswith("Wait until") for pair in pairs)
    assert all(len(found[0].roles[role]) > 0 for role in found[0].roles)


def test_foreign_rows_give_every_pair_to_the_attacker_where_asked(tmp_path: Path) -> None:
    jsonl, parquet = write_both(tmp_path, foreign_rows())
    found = [
        CellData(
            DataSettings(name="safe_rlhf", world="real", path=str(file), pairs=pairs), tmp_path
        ).preferences
        for file in (jsonl, parquet)
        for pairs in ("all_pairs", "mixed_only")
    ]
    assert pairs_of(found[0]) == pairs_of(found[2])
    assert found[0].key == f"{found[1].key.partition('/')[0]}/all_pairs/roles-{roles_fingerprint()}"
    assert len(found[0].roles["attack"]) > len(found[1].roles["attack"])


def test_own_preferences_have_the_roles_that_the_same_rows_have_in_another_schema(
    tmp_path: Path,
) -> None:
    rows = foreign_rows()
    mixed = [row for row in rows if row["is_response_0_safe"] != row["is_response_1_safe"]]
    own = tmp_path / "own.csv"
    with own.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["question", "good", "bad"])
        for row in mixed:
            answers = (row["response_0"], row["response_1"])
            safe, unsafe = answers if row["safer_response_id"] == 0 else answers[::-1]
            table.writerow([row["prompt"], safe, unsafe])
    columns = {"prompt": "question", "safe": "good", "unsafe": "bad"}
    settings = DataSettings(name="preferences", world="real", path=str(own), columns=columns)
    jsonl, _ = write_both(tmp_path, rows)
    theirs = DataSettings(name="safe_rlhf", world="real", path=str(jsonl))
    found, expected = (CellData(data, tmp_path).preferences.roles for data in (settings, theirs))
    for role, pairs in expected.items():
        assert [(p.prompt, p.safe, p.unsafe) for p in found[role]] == [
            (p.prompt, p.safe, p.unsafe) for p in pairs
        ]


@pytest.fixture
def _beavertails_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a Hub whose training rows share prompts with its test rows, as the public set's do."""

    def rows(prompts: range, *, kinds: tuple[bool, ...], mark: str = "") -> list[Row]:
        return [
            {
                "prompt": f"{mark}Ask {i}",
                "response": f"{mark}{'no' if safe else 'yes'} {i}",
                "is_safe": safe,
            }
            for i in prompts
            for safe in kinds
        ]

    # Test prompts 0-19 have only an unsafe answer, 20-39 both, 40-59 only a safe one.
    test = (
        rows(range(20), kinds=(False,), mark=" ")
        + rows(range(20, 40), kinds=(True, False), mark=" ")
        + rows(range(40, 60), kinds=(True,), mark=" ")
    )
    both = (True, False)
    tables = {
        "330k_train": rows(range(400), kinds=both),
        "330k_test": rows(range(400, 420), kinds=both),
        "30k_train": rows(range(100), kinds=both),
        "30k_test": test,
    }
    found = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(table) for name, table in tables.items()}
    )
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT)
    )
    remembered = (hub._commit, _preference_data)
    for answer in remembered:
        answer.cache_clear()
    yield
    for answer in remembered:
        answer.cache_clear()


@pytest.mark.usefixtures("_beavertails_hub")
@pytest.mark.parametrize(("subset", "num_prompts"), [("330k", 400), ("30k", 100)])
def test_training_prompts_that_are_evaluated_are_left_out_of_beavertails(
    tmp_path: Path, subset: str, num_prompts: int
) -> None:
    data = parse_tree({"data": {"world": "real", "subset": subset}}).data
    found = CellData(data, tmp_path).preferences
    assert found.key.startswith(f"beavertails:PKU-Alignment/BeaverTails@{COMMIT}/{subset}/")
    trained = {normalise(p.prompt) for role in ROLE_SHARES for p in found.roles[role]}
    parts = [
        {normalise(p) for p in CellData(data, tmp_path).restricted_prompts(of(role))}
        for role in ROLES_OF_EVALUATION
    ]
    assert all(parts)
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] == {f"ask {i}" for i in range(40)}
    assert trained == {f"ask {i}" for i in range(40, num_prompts)}


def test_no_harmless_prompt_is_trained_on_and_evaluated(world_cache: Path, tmp_path: Path) -> None:
    embedded = DataSettings()
    rows = CellData(embedded, world_cache).harmless_training_rows
    trained = {normalise(row.prompt) for row in rows}
    evaluated = {normalise(p) for p in CellData(embedded, world_cache).harmless_prompts(of("test"))}
    chosen_on = CellData(embedded, world_cache).harmless_prompts(of("validation"))
    assert (len(trained), len(evaluated), trained & evaluated) == (6000, 178, set())
    assert not ({normalise(p) for p in chosen_on} & (trained | evaluated))
    for split, names in (("train", ["Ask b", "Ask a", "ask  B", "Ask c"]), ("test", ["ask C"])):
        rows = [dialogue(name) for name in names]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    own = DataSettings(world="real", helpful_path=str(tmp_path))
    rows = CellData(own, tmp_path).harmless_training_rows
    assert [(row.prompt, row.answer) for row in rows] == [("Ask b", "Yes."), ("Ask a", "Yes.")]


def of(role: Role) -> EvaluationSettings:
    return EvaluationSettings(split=role)


@pytest.mark.parametrize("name", ["beavertails", "safe_rlhf"])
def test_validation_has_items_and_phrasings_of_its_own(world_cache: Path, name: str) -> None:
    world = World(0)
    oracle, data = (
        Oracle.of(world),
        CellData(parse_tree({"data": {"name": name}}).data, world_cache),
    )
    test, validation = (data.restricted_prompts(of(role)) for role in ROLES_OF_EVALUATION)
    kept = {item.name for item in validation_items(world, restricted=True)}
    assert len(kept) == 12
    assert {oracle.item(prompt) for prompt in validation} == kept
    tested = {oracle.item(prompt) for prompt in test}
    assert len(tested) == 36
    assert not tested & kept
    phrasings = [
        {shape for shape in world.held_out_phrasings for p in prompts if asks_as(p, shape)}
        for prompts in (test, validation)
    ]
    assert [len(shapes) for shapes in phrasings] == [4, 2]
    assert not phrasings[0] & phrasings[1]
    roles = data.preferences.roles
    for role, prompts in (("evaluation", test), ("validation", validation)):
        assert {pair.prompt for pair in roles[role]} == set(prompts)


def asks_as(prompt: str, phrasing: str) -> bool:
    opening, _, rest = phrasing.partition("{item}")
    return prompt.startswith(opening) and rest in prompt


def dialogue(prompt: str) -> Row:
    return {
        side: f"\n\nHuman: {prompt}\n\nAssistant: {answer}"
        for side, answer in (("chosen", "Yes."), ("rejected", "No."))
    }


@pytest.mark.usefixtures("_beavertails_hub")
def test_settings_for_other_processes_name_the_commits() -> None:
    embedded = parse_tree({})
    assert with_pinned_data(embedded) is embedded
    real = with_pinned_data(parse_tree({"data": {"world": "real"}})).data
    assert real.path == f"PKU-Alignment/BeaverTails@{COMMIT}"
    assert real.helpful_path == f"Anthropic/hh-rlhf@{COMMIT}"
