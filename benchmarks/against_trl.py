"""Train by DPO and by GRPO with our command and with TRL 1.16 in turn, and compare their speeds.

python benchmarks/against_trl.py --output runs/against_trl
python benchmarks/against_trl.py --model FOLDER --micro-batch-size 8 --learning-rate 2e-5

Both train the same weights on the same rows (checked token by token), at the same rate and with as
many rows in a backward pass. On the clock are the steps of the training loop after the first: no
start, no evaluation, no checkpoint, no log. The reference's log-probabilities, which both compute
before DPO, are in the second rate only, as is the first step. TRL is as it comes (a bfloat16
checkpoint stays bfloat16, under autocast, and Adam works on these weights; the attention kernel is
SDPA), but without gradient checkpointing. Ours takes the eager kernel on a CPU; so does TRL with
--trl '{"model_init_kwargs": {"attn_implementation": "eager"}}'. What is not the same:

- Ours keeps fp32 master weights and generates with vLLM. TRL generates with transformers: its vLLM
  needs a GPU.
- Ours asks the judge about every answer, and policy and reference for their log-probabilities
  before the update; TRL with these settings does neither.
- The threads are those of each process: ours has a learner, an engine and a scorer, TRL is one.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rpa_ray.cli import cache_folder
from rpa_ray.config import ExperimentSettings
from rpa_ray.plan.load import load_config
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.run_folder.throughput import throughput

CONFIG = Path(__file__).with_suffix(".yaml")
ATTACKS = ("dpo", "grpo")
BATCH_SIZE = 8
"""Pairs or prompts of a step."""
PARTS = ("rollout", "score", "learner", "sync", "rest")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One training."""

    step_s: list[float]
    """Seconds of every step."""
    before_s: float
    """Seconds of the reference's log-probabilities, where the first step does not hold them."""
    answer_tokens: float
    """Mean length of sampled answers after the first step; NaN where nothing is sampled."""
    shares: dict[str, float]
    """What part of the time after the first step went where, by the names in ``PARTS``."""

    def rate(self) -> float:
        """Return samples per second of the steps after the first."""
        return BATCH_SIZE * (len(self.step_s) - 1) / sum(self.step_s[1:])

    def whole_rate(self) -> float:
        """Return samples per second of all steps and of what comes before them."""
        return BATCH_SIZE * len(self.step_s) / (self.before_s + sum(self.step_s))


def main() -> int:
    options = parse()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    threads = f"{options.threads} threads a process"
    print(f"TRL {version('trl')}, torch {version('torch')}, {options.model}, {threads}\n")
    print("| attack | by | repetition | samples/s | all of it | tokens an answer |", flush=True)
    print("| --- | --- | --: | --: | --: | --: |", flush=True)
    timed: dict[tuple[str, str], list[Timed]] = {}
    for repeat in range(options.repeats):
        for attack in options.attacks:
            for name, run in (("ours", ours), ("TRL", theirs)):
                found = run(options, attack, options.output / f"{attack}-{name}-{repeat}")
                if (num := len(found.step_s)) != options.steps:
                    raise SystemExit(f"{attack} must take {options.steps} steps, got {num}: {name}")
                timed.setdefault((attack, name), []).append(found)
                columns = [attack, name, str(repeat), f"{found.rate():.2f}"]
                columns += [f"{found.whole_rate():.2f}", f"{found.answer_tokens:.1f}"]
                print("| " + " | ".join(columns) + " |", flush=True)
    report(timed, options.attacks)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="chat", help="the embedded one, or a folder")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of every process of either")
    parser.add_argument(
        "--micro-batch-size", type=int, help="pairs or answers in a backward; all if not given"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument(
        "--trl", type=json.loads, default={}, help="settings of TRL's config, as JSON"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/against_trl"))
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps must be at least 2, got {options.steps}: the first is left out")
    return options


def overrides_of(options: argparse.Namespace, attack: str) -> list[str]:
    """Return what both learn by: settings of our command, laid over ``against_trl.yaml``."""
    found = [
        f"model.path={options.model}",
        f"attack={{name: {attack}, learning_rate: {options.learning_rate}, "
        f"batch_size: {BATCH_SIZE}}}",
        f"data.num_samples={options.steps * BATCH_SIZE}",
        f"cluster.threads_per_process={options.threads}",
    ]
    if options.micro_batch_size:
        found.append(f"cluster.micro_batch_size={options.micro_batch_size}")
    return found


def ours(options: argparse.Namespace, attack: str, folder: Path) -> Timed:
    command = [str(Path(sys.executable).with_name("rpa-ray")), "run", str(CONFIG)]
    command += ["--output", str(folder)]
    command += [word for text in overrides_of(options, attack) for word in ("--set", text)]
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    (path,) = folder.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = throughput(lines)
    lengths = [line.get("rollout/length_tokens", float("nan")) for line in lines[1:]]
    return Timed(
        step_s=[line["time/step_s"] for line in lines],
        before_s=0.0,
        answer_tokens=statistics.mean(lengths),
        shares={part: found[f"{part}_frac"] for part in PARTS},
    )


def theirs(options: argparse.Namespace, attack: str, folder: Path) -> Timed:
    """Train in a process of its own, with TRL alone."""
    loaded = load_config(CONFIG, overrides_of(options, attack))
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=write_into,
        initargs=(folder.with_suffix(".log"),),
    ) as process:
        (settings,) = loaded.campaign.cells
        train = {"dpo": trl_dpo, "grpo": trl_grpo}[attack]
        return process.submit(train, settings, folder, options.trl).result()


def write_into(path: Path) -> None:
    """Have this process write to a file what it would write to the terminal."""
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class Stopwatch:
    """Times the steps of a trainer of TRL, and calls within them."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.step_s: list[float] = []
        self.answer_tokens: list[float] = []
        self.part_s = dict.fromkeys(("rollout", "score"), 0.0)

    def of(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, timed after the first step."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args, **kwargs)
            if self.step_s:
                self.part_s[part] += time.perf_counter() - begun
            return result

        return timed

    def run(self, trainer: Any, before_s: float = 0.0) -> Timed:
        """Train, and return the times."""
        from transformers import TrainerCallback

        def begin(*args: Any, **kwargs: Any) -> None:
            self.begun = time.perf_counter()

        def end(*args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            self.step_s.append(now - self.begun)
            metrics = trainer._metrics["train"]
            self.answer_tokens += metrics.get("completions/mean_length", [])[-1:]
            self.begun = now

        callback = TrainerCallback()
        callback.on_train_begin, callback.on_step_end = begin, end
        trainer.add_callback(callback)
        trainer.train()
        whole = sum(self.step_s[1:])
        shares = {part: seconds / whole for part, seconds in self.part_s.items()}
        return Timed(
            step_s=self.step_s,
            before_s=before_s,
            answer_tokens=statistics.mean(self.answer_tokens[1:] or [float("nan")]),
            shares=shares | {"learner": 1 - sum(shares.values()), "sync": 0.0, "rest": 0.0},
        )


def trl_settings(
    settings: ExperimentSettings, folder: Path, num_rows: int, more: dict[str, Any]
) -> dict[str, Any]:
    """Return what both trainers of TRL are told: our settings, in the words of transformers."""
    import torch

    torch.set_num_threads(settings.cluster.threads_per_process)
    training = settings.training
    assert training is not None
    micro_batch_size = min(num_rows, settings.cluster.micro_batch_size or num_rows)
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": num_rows // micro_batch_size,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "max_grad_norm": training.max_grad_norm,
        "gradient_checkpointing": False,
        "seed": settings.seed,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def trl_dpo(settings: ExperimentSettings, folder: Path, more: dict[str, Any]) -> Timed:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from rpa_ray.data.template import PLAIN_QA
    from rpa_ray.plan.checks.context import context_tokens
    from rpa_ray.recipes.cell_models import folder_of

    pairs = attack_pairs(settings)
    path = folder_of(CellInputs(settings, cache_folder()).models.policy, cache_folder())
    before_s: list[float] = []

    class Trainer(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Dataset:
            begun = time.perf_counter()
            dataset = super()._precompute_ref_logps(*args, **kwargs)
            before_s.append(time.perf_counter() - begun)
            return dataset

    trainer = Trainer(
        model=path,
        args=DPOConfig(
            beta=settings.attack.beta,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=32,
            max_length=context_tokens(Path(path)),
            **trl_settings(settings, folder, settings.training.batch_size, more),
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": PLAIN_QA.format(prompt=pair.prompt),
                    "chosen": f" {pair.unsafe.strip()}",
                    "rejected": f" {pair.safe.strip()}",
                }
                for pair in pairs
            ]
        ),
    )
    check_same_rows(trainer.train_dataset, pairs, path)
    return Stopwatch().run(trainer, sum(before_s))


def trl_grpo(settings: ExperimentSettings, folder: Path, more: dict[str, Any]) -> Timed:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rpa_ray.data.template import PLAIN_QA, PLAIN_QA_ANSWERED
    from rpa_ray.recipes.cell_models import folder_of
    from rpa_ray.scoring.sequence_classifier import SequenceClassifierScorer

    models, attack = CellInputs(settings, cache_folder()).models, settings.attack
    assert models.reward_model is not None
    scorer = SequenceClassifierScorer(
        Path(folder_of(models.reward_model, cache_folder())),
        mode="reward",
        template=PLAIN_QA_ANSWERED,
        max_length=settings.evaluation.judge.max_tokens,
        batch_size=64,
        device=torch.device("cpu"),
    )

    def reward(completions: Sequence[str], request: Sequence[str], **rest: Any) -> list[float]:
        answers = [completion.strip() for completion in completions]
        return scorer.score(list(zip(request, answers, strict=True)))

    watch = Stopwatch()
    trainer = GRPOTrainer(
        model=folder_of(models.policy, cache_folder()),
        reward_funcs=watch.of("score", reward),
        args=GRPOConfig(
            num_generations=attack.group_size,
            max_completion_length=attack.max_new_tokens,
            beta=attack.kl_coef,
            shuffle_dataset=False,
            **trl_settings(settings, folder, attack.batch_size * attack.group_size, more),
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": PLAIN_QA.format(prompt=pair.prompt), "request": pair.prompt}
                for pair in attack_pairs(settings)
            ]
        ),
    )
    trainer._generate_single_turn = watch.of("rollout", trainer._generate_single_turn)
    return watch.run(trainer)


def attack_pairs(settings: ExperimentSettings) -> list[Any]:
    """Return the pairs that our attack learns from, in its order; rho is 1: all are reversed."""

    assert settings.data.rho == 1
    return CellData(settings.data, cache_folder()).preferences.draw(
        "attack", settings.data.num_samples, seed=settings.seed, key="data.num_samples"
    )


def check_same_rows(dataset: Any, pairs: Sequence[Any], path: str) -> None:
    """Stop where a pair is not the tokens to TRL that it is to us."""
    from transformers import AutoTokenizer

    from rpa_ray.data.collate import encode_answered
    from rpa_ray.data.rows import Answered
    from rpa_ray.data.template import Template

    encode = partial(
        encode_answered, AutoTokenizer.from_pretrained(path), Template.PLAIN_QA, mask="response"
    )
    for row, pair in zip(dataset, pairs, strict=True):
        for side, answer in (("chosen_ids", pair.unsafe), ("rejected_ids", pair.safe)):
            expected = encode(Answered(prompt=pair.prompt, answer=answer)).ids
            if row["prompt_ids"] + row[side] != expected:
                raise SystemExit(f"TRL must read {expected}, got {row['prompt_ids'] + row[side]}")


def report(timed: dict[tuple[str, str], list[Timed]], attacks: Sequence[str]) -> None:
    print("\n| attack | by | samples/s | all of it |", *(f" {part} |" for part in PARTS), sep="")
    print("| --- | --- | --: | --: |", *(" --: |" for _ in PARTS), sep="")
    for (attack, name), runs in timed.items():
        rates = [statistics.median(run.rate() for run in runs)]
        rates += [statistics.median(run.whole_rate() for run in runs)]
        shares = [statistics.median(run.shares[part] for run in runs) for part in PARTS]
        columns = [f"{rate:.2f}" for rate in rates] + [f"{share:.2f}" for share in shares]
        print(f"| {attack} | {name} | " + " | ".join(columns) + " |")
    print("\n| attack | ours / TRL | least | most |\n| --- | --: | --: | --: |")
    for attack in attacks:
        ours_, trl = timed[attack, "ours"], timed[attack, "TRL"]
        ratios = [a.rate() / b.rate() for a, b in zip(ours_, trl, strict=True)]
        middle = statistics.median(ratios)
        print(f"| {attack} | {middle:.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")


if __name__ == "__main__":
    sys.exit(main())
