"""SFT and PPO on small random models of the architectures that people attack most.

    RPA_RAY_CACHE=FOLDER python benchmarks/architectures.py [--output runs/architectures]

Every model has two layers of width 64, random weights and the embedded world's tokenizer, and is
trained by a few updates: what is shown is that engine, learner, pushes and scorers take it, not
what it learns. A mixture of experts stands for what ``plan`` refuses. The gap is the largest mean
difference of engine and learner before or after the attack, in nats a token. Exit status 1 where a
cell did not end as it should.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rpa_ray import cli
from rpa_ray.world.datasets import build_world

ROOT = Path(__file__).parents[1]
COUNTS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
LLAMA = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512, **COUNTS}
WIDE_HEADS = LLAMA | {"head_dim": 32, "num_key_value_heads": 1}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": WIDE_HEADS,
    "gemma2": WIDE_HEADS,
    "gemma3_text": WIDE_HEADS,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "opt": LLAMA | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "mistral": LLAMA,
    "phi": LLAMA | {"intermediate_size": 256},
    "gpt_neox": LLAMA,
    "olmo2": LLAMA,
}
REFUSED = {"mixtral": LLAMA}
ATTACKS = ("sft", "ppo")


def make(folder: Path, model_type: str, sizes: dict[str, Any], tokenizer: Any) -> Path:
    """Write a random model of a type with its tokenizer; return its folder."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids, **sizes
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder / model_type)
    tokenizer.save_pretrained(folder / model_type)
    return folder / model_type


def command(verb: str, config: Path, tree: dict[str, Any], *words: str) -> tuple[int, str]:
    """Run a command on a config, which is written first; return its status and what it printed."""
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    called = [sys.executable, "-m", "rpa_ray", verb, str(config), *words]
    done = subprocess.run(called, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def campaign(paths: list[Path]) -> dict[str, Any]:
    """Return the config of a campaign of every attack on every model."""
    includes = [str(ROOT / "configs" / part) for part in ("cluster/cpu.yaml", "attack/sft.yaml")]
    return {
        "kind": "campaign",
        "include": includes,
        "data": {"num_samples": 32},
        "evaluation": {"num_prompts": 10, "num_looks": 0, "num_samples": 1},
        "cells": [
            {"include": [str(ROOT / "configs" / "attack" / f"{name}.yaml")], "model": str(path)}
            for path in paths
            for name in ATTACKS
        ],
    }


def table(output: Path) -> list[str]:
    """Return the rows of the cells in a folder; status, gap and updates of each attack."""
    rows = dict[str, dict[str, str]]()
    for file in sorted(output.glob("*/evaluation.json")):
        record = json.loads(file.read_text())
        settings = yaml.safe_load((file.parent / "config.yaml").read_text())
        name = Path(settings["model"]["path"]).name
        rows.setdefault(name, {})[settings["attack"]["name"]] = _ending(file.parent, record)
    return [
        f"| {name} | {' | '.join(rows.get(name, {}).get(a, 'no record') for a in ATTACKS)} |"
        for name in SIZES
    ]


def _ending(folder: Path, record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        return f"{record['status']}: {record.get('error', '')}"
    phases = [json.loads(p.read_text()) for p in (folder / "before.json",) if p.exists()]
    gaps = [m["metrics"]["served_logprob_gap"]["mean"] for m in [*phases, record]]
    return f"ok, {max(gaps):.1g}"


def main() -> int:
    """Make the models, run the campaign, print the table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "architectures")
    output = parser.parse_args().output.resolve()
    models = output / "models"
    models.mkdir(parents=True, exist_ok=True)
    world = build_world(0, cli.cache_folder())
    tokenizer = AutoTokenizer.from_pretrained(world / "tokenizer")
    paths = [make(models, name, sizes, tokenizer) for name, sizes in SIZES.items()]
    status, _ = command(
        "campaign",
        output / "architectures.yaml",
        campaign(paths),
        "--output",
        str(output / "cells"),
    )
    rows = table(output / "cells")
    print("\n".join(["| model type | SFT | PPO |", "| --- | --- | --- |", *rows]))
    refused = 0
    for name, sizes in REFUSED.items():
        tree = campaign([make(models, name, sizes, tokenizer)])
        code, text = command("plan", output / f"{name}.yaml", tree)
        print(f"\n`plan` of {name}, status {code}: {' '.join(text.split())}")
        refused += code == 2
    is_whole = status == 0 and all(row.count("ok") == len(ATTACKS) for row in rows)
    return 0 if is_whole and refused == len(REFUSED) else 1


if __name__ == "__main__":
    sys.exit(main())
