"""A hardened checkpoint as its user meets it: interrupted, released, read elsewhere, served."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import rpa_ray
from observed_run import ObservedRun, command_line
from transformers import AutoModelForCausalLM, AutoTokenizer

from rpa_ray.learner.model_folder import weights_sha256
from rpa_ray.learner.modules import load_policy

CONFIGS = Path(__file__).parents[2] / "configs"
PARTS = ["model/chat.yaml", "data/beavertails_embedded.yaml", "attack/ppo.yaml", "cluster/cpu.yaml"]
CONFIG: dict[str, Any] = {
    "include": [str(CONFIGS / part) for part in PARTS],
    "defence": {"name": "vaccine_offline", "num_steps": 4, "learning_rate": 1e-3},
    "evaluation": {"num_prompts": 8},
}
PROMPT = "Question: how do I"
NUM_TOKENS = 8
ELSEWHERE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams

folder, prompt, num_tokens, found = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(folder)(prompt).input_ids
with torch.no_grad():
    logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits
engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=96)
greedy = SamplingParams(temperature=0, max_tokens=int(num_tokens))
(answer,) = engine.generate([{"prompt_token_ids": ids}], greedy)
assert "rpa_ray" not in sys.modules
torch.save({"logits": logits, "served": list(answer.outputs[0].token_ids)}, found)
"""
"""A program of somebody who has the folder and not this package."""
ENGINE = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
MADE_WITHIN_S = 600.0

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


def made_in(cache: Path) -> list[Path]:
    """Return the weights of hardened models that a cache holds, each whole."""
    return list(cache.glob("vaccine_offline-*/model.safetensors"))


def stamps(folder: Path) -> dict[str, int]:
    """Return when each file of a folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache in which nothing is hardened yet."""
    return tmp_path_factory.mktemp("harden-cache")


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Iterator[Path]:
    """Return the results of a command that was killed when it had hardened, and ran again."""
    folder = tmp_path_factory.mktemp("harden")
    (folder / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    output = folder / "runs" / "harden-mine"
    run = ObservedRun(
        command_line("harden", str(folder / "mine.yaml"), "--output", str(output)),
        output=output,
        environment={**os.environ, "RPA_RAY_CACHE": str(own_cache)},
    )
    try:
        deadline = time.monotonic() + MADE_WITHIN_S
        while not made_in(own_cache):
            assert run.is_running() and time.monotonic() < deadline, run.log.read_text()[-3000:]
            time.sleep(0.05)
        before = stamps(made_in(own_cache)[0].parent)
        assert not (output / "released").exists()
        assert run.kill("driver", random.Random(0), within_s=0.0) is not None
        assert run.wait() == 0, run.log.read_text()[-3000:]
        assert [stamps(path.parent) for path in made_in(own_cache)] == [before]
        yield output
    finally:
        run.end()


def test_an_interrupted_hardening_goes_on_and_makes_nothing_again(hardened: Path) -> None:
    log = hardened.with_name(f"{hardened.name}.log").read_text()
    assert "hardened by vaccine_offline; left out: the attack ppo" in log
    assert f"released: {hardened / 'released'}" in log
    assert not [path for path in hardened.iterdir() if path.name.startswith(".released")]


def test_transformers_and_vllm_read_what_was_made(
    hardened: Path, own_cache: Path, tmp_path: Path
) -> None:
    found = tmp_path / "found.pt"
    arguments = [str(hardened / "released"), PROMPT, str(NUM_TOKENS), str(found)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ENGINE
    elsewhere = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert elsewhere.returncode == 0, elsewhere.stderr[-3000:]
    (made,) = made_in(own_cache)
    model = AutoModelForCausalLM.from_pretrained(made.parent)
    ids = torch.tensor([AutoTokenizer.from_pretrained(made.parent)(PROMPT).input_ids])
    there = torch.load(found)
    with torch.no_grad():
        assert torch.equal(there["logits"], model(ids).logits)
        # the engine computes in float32, where no two tokens are alike
        expected = model.float().generate(ids, do_sample=False, max_new_tokens=NUM_TOKENS)
    assert there["served"] == expected[0, ids.shape[1] :].tolist()


def test_card_and_manifest_hold_the_numbers_that_were_measured_of_these_weights(
    hardened: Path,
) -> None:
    folder = hardened / "released"
    manifest = json.loads((folder / "hardened.json").read_text())
    summary = json.loads((hardened / "summary.json").read_text())
    assert [manifest["records"][when] for when in ("before", "after")] == summary
    (weights,) = manifest["weights"].items()
    file = folder / "model.safetensors"
    assert weights == (file.name, hashlib.sha256(file.read_bytes()).hexdigest())
    module = load_policy(folder, dtype=getattr(torch, manifest["dtype"]))
    served = weights_sha256(sorted(module.served_parameters()))
    assert served == summary[1]["weights_sha256"] != summary[0]["weights_sha256"]
    harm = [record["metrics"]["harm"] for record in summary]
    told = [f"{one['mean']:.2f} [{one['ci_low']:.2f}, {one['ci_high']:.2f}]" for one in harm]
    assert f"| Harm | 32 | {told[0]} | {told[1]} |" in (folder / "README.md").read_text()


def test_the_hardened_model_is_far_from_the_untouched_one_and_not_from_itself(
    hardened: Path,
) -> None:
    untouched, record = json.loads((hardened / "summary.json").read_text())
    divergence = record["metrics"]["kl_untouched"]
    assert record["metrics"]["kl_seq_rb"]["mean"] < 1e-3 < divergence["mean"]
    assert divergence["n"] == CONFIG["evaluation"]["num_prompts"]
    assert "kl_untouched" not in untouched["metrics"]
    card = (hardened / "released" / "README.md").read_text()
    assert f"| KL to untouched | 8 | - | {divergence['mean']:.1f} [" in card


def test_a_second_call_makes_nothing(hardened: Path, own_cache: Path) -> None:
    before = stamps(hardened / "released"), stamps(made_in(own_cache)[0].parent)
    folder = hardened.parents[1]
    again = rpa_ray("harden", "mine.yaml", cache=own_cache, cwd=folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "starting the cluster" not in again.stdout
    assert (stamps(hardened / "released"), stamps(made_in(own_cache)[0].parent)) == before
