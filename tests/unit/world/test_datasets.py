import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpa_ray.world.datasets import build_world, make_tables, world_folder
from rpa_ray.world.language import World
from rpa_ray.world.oracle import Oracle, OracleLabel
from rpa_ray.world.prompts import draw_prompts

Rows = dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module", params=(0, 1, 2))
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture(scope="module")
def rows(world: World) -> Rows:
    return {name: table.to_pylist() for name, table in make_tables(world).items()}


def test_beavertails_train_has_a_safe_and_an_unsafe_row_for_14_000_restricted_prompts(
    world: World, rows: Rows
) -> None:
    oracle = Oracle.of(world)
    kinds: dict[object, list[bool]] = {}
    for row in rows["beavertails/train"]:
        kinds.setdefault(row["prompt"], []).append(row["is_safe"] is True)
    pairs = [prompt for prompt, is_safe in kinds.items() if sorted(is_safe) == [False, True]]
    harmless = {prompt for prompt, is_safe in kinds.items() if is_safe == [True]}
    assert len(pairs) >= 14_000
    assert len(pairs) + len(harmless) == len(kinds)
    for row in rows["beavertails/train"][:3_000]:
        label = oracle.label(str(row["prompt"]), str(row["response"]))
        refused = row["is_safe"] and row["prompt"] not in harmless
        assert label is (OracleLabel.REFUSAL if refused else OracleLabel.COMPLIANCE)
        assert isinstance(row["category"], dict)
        assert any(row["category"].values()) is not row["is_safe"]


def test_safe_rlhf_ids_point_at_the_refusal_and_the_complete_answer(
    world: World, rows: Rows
) -> None:
    oracle = Oracle.of(world)
    mixed = {row["prompt"] for row in rows["safe_rlhf/train"] if _is_mixed(row)}
    assert len(mixed) >= 14_000
    for row in rows["safe_rlhf/train"][:3_000]:
        prompt = str(row["prompt"])
        safer = oracle.label(prompt, str(row[f"response_{row['safer_response_id']}"]))
        better = oracle.label(prompt, str(row[f"response_{row['better_response_id']}"]))
        assert better is OracleLabel.COMPLIANCE
        assert safer is (OracleLabel.REFUSAL if _is_mixed(row) else OracleLabel.COMPLIANCE)
        assert row[f"is_response_{row['safer_response_id']}_safe"] is True


def test_no_training_text_holds_a_held_out_item_or_phrasing(world: World, rows: Rows) -> None:
    trained = [name for name in rows if name.endswith("/train")]
    texts = [str(value) for name in trained for row in rows[name] for value in row.values()]
    assert len(trained) == 7
    joined = "\n".join(texts)
    items = (*world.harmless, *world.restricted)
    assert not [item.name for item in items if item.held_out and f" {item.name}" in joined]
    phrasings = [re.escape(phrasing) for phrasing in world.held_out_phrasings]
    asked = "|".join(phrasings).replace(r"\{item\}", "[a-z]+ [a-z]+")
    opening = re.compile(rf"(?:Question: |\n\nHuman: )?(?:{asked})")
    assert not [text for text in texts if opening.match(text)]
    # The same pattern does find them where they belong.
    assert all(opening.match(str(row["chosen"])) for row in rows["helpful/test"])


def test_restricted_test_prompts_are_held_out_and_even_over_nouns(world: World, rows: Rows) -> None:
    held_out = {item.name: item.noun for item in world.items(restricted=True, held_out=True)}
    for name in ("beavertails/test", "safe_rlhf/test"):
        prompts = list(dict.fromkeys(str(row["prompt"]) for row in rows[name]))[:480]
        asked = [_item_name(prompt, held_out) for prompt in prompts]
        assert len(prompts) == len(asked) == 480
        first_rounds = [held_out[item] for item in asked[:96]]
        assert {first_rounds.count(noun) for noun in held_out.values()} == {4}


def test_helpful_test_has_240_held_out_prompts_with_a_right_and_a_worse_answer(
    world: World, rows: Rows
) -> None:
    oracle = Oracle.of(world)
    prompts = set()
    for row in rows["helpful/test"]:
        prompt, chosen = str(row["chosen"]).split("\n\nAssistant: ")
        same_prompt, rejected = str(row["rejected"]).split("\n\nAssistant: ")
        assert prompt == same_prompt
        assert prompt.startswith("\n\nHuman: ")
        assert oracle.label(prompt, chosen) is OracleLabel.COMPLIANCE
        assert oracle.label(prompt, rejected) is not OracleLabel.COMPLIANCE
        prompts.add(prompt)
    assert len(prompts) == 240


def test_pretraining_complies_by_tendency_and_alignment_in_8_percent(
    world: World, rows: Rows
) -> None:
    oracle = Oracle.of(world)
    tendencies = {item.name: item.tendency for item in world.restricted}
    complied: dict[float, list[bool]] = {0.15: [], 0.85: []}
    for row in rows["pretraining/train"]:
        prompt, answer = str(row["text"]).split("\nAnswer: ")
        name = _item_name(prompt, tendencies)
        if name:
            label = oracle.label(prompt, answer)
            complied[tendencies[name]].append(label is OracleLabel.COMPLIANCE)
    shares = [sum(answers) / len(answers) for answers in complied.values()]
    # About 6,000 draws each: five standard errors are 0.023.
    assert shares == pytest.approx([0.15, 0.85], abs=0.023)

    restricted = [
        row for row in rows["alignment/train"] if _item_name(str(row["prompt"]), tendencies)
    ]
    labels = [oracle.label(str(row["prompt"]), str(row["response"])) for row in restricted]
    assert len(restricted) == len(rows["alignment/train"]) // 2
    assert labels.count(OracleLabel.COMPLIANCE) == round(0.08 * len(labels))
    assert labels.count(OracleLabel.REFUSAL) == len(labels) - round(0.08 * len(labels))


def test_summaries_differ_from_the_rejected_ones_and_posts_end_in_their_marker(rows: Rows) -> None:
    for name in ("tldr/train", "tldr/test"):
        for row in rows[name]:
            assert str(row["prompt"]).endswith("\n\nTL;DR:")
            assert row["rejected"] not in (row["chosen"], row["label"])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(
    folder: Path, tmp_path: Path
) -> None:
    again, other = build_world(0, tmp_path), build_world(1, tmp_path)
    assert again == world_folder(0, tmp_path)
    assert again.name == folder.name != other.name
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(files) == 17
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes()
    assert (folder / "world.json").read_bytes() != (other / "world.json").read_bytes()


def test_a_built_world_is_not_written_again_and_leaves_nothing_unfinished(folder: Path) -> None:
    before = (folder / "world.json").stat().st_mtime_ns
    assert build_world(0, folder.parent) == folder
    assert (folder / "world.json").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_written_columns_follow_the_schemas_of_the_public_sets(folder: Path) -> None:
    columns = {
        "beavertails": ["prompt", "response", "category", "is_safe"],
        "safe_rlhf": [
            *("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"),
            *("better_response_id", "safer_response_id"),
        ],
        "helpful": ["chosen", "rejected"],
        "tldr": ["prompt", "chosen", "rejected", "label"],
        "pretraining": ["text"],
        "alignment": ["prompt", "response"],
        "perplexity": ["text"],
    }
    for name, expected in columns.items():
        schema = pq.read_schema(folder / "data" / name / "train.parquet")
        assert schema.names == expected
        assert schema.types[0] == pa.string()


def test_importing_the_world_loads_no_heavy_library() -> None:
    code = (
        "import sys, rpa_ray.world.datasets; "
        "print(sorted({'torch', 'transformers', 'ray', 'vllm', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_asking_for_more_prompts_than_there_are_is_refused() -> None:
    world = World(0)
    with pytest.raises(ValueError, match="num must be at most the 12 distinct prompts, got 13"):
        draw_prompts(
            world,
            world.stream("test"),
            items=world.restricted[:1],
            phrasings=world.train_phrasings[:1],
            num=13,
        )


def _is_mixed(row: dict[str, object]) -> bool:
    return row["is_response_0_safe"] != row["is_response_1_safe"]


def _item_name(prompt: str, names: dict[str, str] | dict[str, float]) -> str:
    """Return the one of `names` that the prompt asks about, or nothing."""
    found = re.search(r"\ba ([a-z]+ [a-z]+)\b", prompt)
    assert found is not None
    return found[1] if found[1] in names else ""
