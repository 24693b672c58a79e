import copy
from typing import Any

import yaml
from hostile import every_hostile_text
from markdown_it import MarkdownIt
from report_folders import Json, record

from rpa_ray.report.card import model_card

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def manifest_of(before: Json, after: Json, **changed: Any) -> dict[str, Any]:
    """Return the manifest of a checkpoint that one offline defence hardened."""
    method = {
        "description": "Fine-tuning on refusals. Source: nobody (2026).",
        "config": {"name": "vaccine_offline", "num_steps": 1000, "batch_size": 8, "rho": 2.5},
        "seed": 7,
        "start": "chat-0123",
        "key": "vaccine_offline-4567",
    }
    rows = {"source": "owner/pairs", "revision": "b" * 40, "num_rows": 1234, "sha256": "c" * 64}
    settings = {
        "data": {"name": "beavertails", "template": "plain_qa"},
        "evaluation": {"split": "test", "max_new_tokens": 56},
    }
    return {
        "model": "owner/model@" + "a" * 40,
        "methods": [method],
        "rows": rows,
        "dtype": "bfloat16",
        "versions": {"rpa_ray": "9.8.7", "vllm": None},
        "git_commit": "abc",
        "config": settings,
        "records": {"before": before, "after": after},
        **changed,
    }


def records(*, world: str = "embedded", **after: float) -> tuple[Json, Json]:
    """Return what was measured of the untouched model, and of the hardened one."""
    before = record(attack="none", **dict.fromkeys(after, 0.5)) | {"world": world}
    return before, record(attack="none", defence="vaccine_offline", **after) | {"world": world}


def head_and_body(card: str) -> tuple[dict[str, Any], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_names_the_base_model_and_what_reads_the_files() -> None:
    head, _ = head_and_body(model_card(manifest_of(*records(harm=0.1))))
    assert head["base_model"] == "owner/model"
    assert head["library_name"] == "transformers"
    assert {"vaccine_offline", "hardened"} <= set(head["tags"])


def test_it_says_what_was_done_with_which_settings_on_which_rows() -> None:
    _, body = head_and_body(model_card(manifest_of(*records(harm=0.1))))
    assert "Fine-tuning on refusals. Source: nobody (2026)." in body
    assert "| rho | 2.5 |" in body
    told = (
        "1,000 updates of 8 rows in bfloat16 with seed 7, on the 1,234 rows of the defence split "
        f"of owner/pairs ({'b' * 40}), sha256 {'c' * 64}. It began with chat-0123"
    )
    assert told in body
    assert "rpa_ray 9.8.7 (commit abc)" in body and "vllm" not in body
    assert "It was not attacked here." in body


def test_numbers_have_their_interval_and_count_and_truth_comes_first() -> None:
    measured = records(p_harm_sampled=0.2, harm=0.1, ppl_median=3.0, kl_seq_k1=9.0)
    _, body = head_and_body(model_card(manifest_of(*measured)))
    lines = [line for line in body.splitlines() if line.startswith(("| Harm", "| Judge", "| Perp"))]
    assert lines == [
        "| Harm | 100 | 0.50 [0.45, 0.55] | 0.10 [0.05, 0.15] |",
        "| Judge | 100 | 0.50 [0.45, 0.55] | 0.20 [0.15, 0.25] |",
        "| Perplexity | 100 | 0.5 [0.5, 0.6] | 3.0 [3.0, 3.0] |",
    ]
    assert "Every hazard of the embedded world is fictional." in body


def test_without_an_oracle_the_judge_leads_and_is_called_no_truth() -> None:
    measured = records(world="real", refusal_rate=0.4, p_harm_sampled=0.2)
    _, body = head_and_body(model_card(manifest_of(*measured)))
    assert body.index("| Judge |") < body.index("| Refused |")
    assert "Harm is what a classifier says" in body and "fictional" not in body


@every_hostile_text
def test_names_of_others_are_text(text: str) -> None:
    def built_from(name: str) -> list[str]:
        found = manifest_of(*records(harm=0.1), model=name)
        found = copy.deepcopy(found)
        found["rows"]["source"] = found["methods"][0]["start"] = name
        head, body = head_and_body(model_card(found))
        assert head["base_model"] == name
        return [f"{token.type} {token.tag}" for token in PARSER.parse(body)]

    assert built_from(text) == built_from("name")
