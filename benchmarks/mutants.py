"""Do the tests notice when a number becomes wrong? Mistakes in a copy of the code, one by one.

python benchmarks/mutants.py            # all, about ten minutes
python benchmarks/mutants.py harm looks # those whose names contain a word

Every mutant is one exchanged text in one file. It dies where one of its tests fails; one that
survives is a number that nobody guards. The table goes to the note of the same name.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("rpa_ray", "tests", "benchmarks", "configs", "launch")


@dataclass(frozen=True)
class Mutant:
    """One mistake, and the tests that are to notice it."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = (
    Mutant(
        "fluency limit from refusals alone",
        "jobs/instruments.py",
        "for answer in (pair.safe, pair.unsafe)]\n    helpful",
        "for answer in (pair.safe,)]\n    helpful",
        "jobs/test_scorers.py",
    ),
    Mutant(
        "reversed DPO pair keeps the reference's log-probabilities",
        "jobs/attack_batches.py",
        "flipped = (encoded.unsafe[i], encoded.safe[i], unsafe_logprob, safe_logprob)",
        "flipped = (encoded.unsafe[i], encoded.safe[i], safe_logprob, unsafe_logprob)",
        "jobs/test_attack_source.py",
    ),
    Mutant(
        "evaluated prompts are trained on",
        "data/split.py",
        "if normalise(pair.prompt) not in held_out:",
        "if True:",
        "data/test_split.py",
    ),
    Mutant(
        "the engine's log-probabilities are the old policy's",
        "sources/rollout.py",
        "                old_logprobs=old,",
        "                old_logprobs=rollout_logprobs,",
        "sources",
    ),
    Mutant(
        "Vaccine perturbs MLP outputs",
        "defences/online/vaccine.py",
        "found = modules_of_blocks(model, ATTENTION_NAMES)",
        'found = modules_of_blocks(model, ("mlp",))',
        "defences/online/test_vaccine.py",
    ),
    Mutant(
        "Lisa pulls during the warm-up",
        "defences/online/lisa.py",
        "self._num_attack_updates > self.config.warmup_frac * context.num_planned_updates",
        "self._num_attack_updates >= 0",
        "defences/online/test_lisa.py",
    ),
    Mutant(
        "helpfulness reads another text",
        "jobs/scorers.py",
        'DIALOGUE_ANSWERED = f"{{prompt}}{ASSISTANT} {{answer}}"',
        'DIALOGUE_ANSWERED = "X{prompt}{answer}"',
        "jobs/test_scorers.py",
    ),
    Mutant(
        "best-of-N keeps what the judge likes best",
        "evaluation/best_of_n.py",
        "    return answer.reward",
        "    return answer.judge or 0.0",
        "evaluation/test_best_of_n.py",
    ),
    Mutant(
        "other percentiles in the bootstrap",
        "evaluation/clusters.py",
        "[(1 - level) / 2, (1 + level) / 2]",
        "[1 - level, level]",
        "evaluation",
    ),
    Mutant(
        "whitening by the moments of one rank",
        "attacks/ppo.py",
        "sums = context.sum_over_ranks(whitening_sums(advantages, mask))",
        "sums = whitening_sums(advantages, mask)",
        "attacks/test_ppo.py",
    ),
    Mutant(
        "the multiplier falls where costs are too high",
        "ops/costs.py",
        "exponent = learning_rate * multiplier * excess",
        "exponent = -learning_rate * multiplier * excess",
        "defences/online/test_safe_rlhf.py",
    ),
    Mutant(
        "harm counts any step",
        "world/facts.py",
        "if (step.material, step.tool) == (expected.material, expected.tool):",
        "if True:",
        "world/test_oracle.py",
    ),
    Mutant(
        "chance is not taken off harm",
        "world/oracle.py",
        "harm=max(0.0, (share - chance) / (1 - chance)),",
        "harm=share,",
        "world/test_oracle.py",
    ),
    Mutant(
        "a refusal with steps is a refusal",
        "world/oracle.py",
        "if reading.num_refusing or (num_own and num_named > 2):",
        "if num_own and num_named > 2:",
        "world/test_oracle.py",
    ),
    Mutant(
        "harm is that of greedy answers",
        "evaluation/metrics.py",
        'or a smaller one, counts as 0.",\n        answers=Decoding.SAMPLED,',
        'or a smaller one, counts as 0.",\n        answers=Decoding.GREEDY,',
        "evaluation/test_measure.py",
    ),
    Mutant(
        "the judge's gap has the other sign",
        "evaluation/metrics.py",
        "return answer.judge - answer.complies",
        "return answer.complies - answer.judge",
        "evaluation/test_measure.py",
    ),
    Mutant(
        "every prompt is an item of its own",
        "evaluation/metric.py",
        "return mean_estimate(values, items=items, bounded",
        "return mean_estimate(values, items=None, bounded",
        "evaluation/test_measure.py",
    ),
    Mutant(
        "intervals without the exact one of a share",
        "evaluation/statistics.py",
        "_interval_of_share(totals, level) if bounded else t_interval(totals, level)",
        "NO_INTERVAL if bounded else t_interval(totals, level)",
        "evaluation/test_statistics.py",
    ),
    Mutant(
        "the judge that is reported prices answers",
        "jobs/scorers.py",
        'return "judge" if models.second_judge is None else "second_judge"',
        'return "judge"',
        "jobs",
    ),
    Mutant(
        "validation prompts are reported",
        "recipes/held_out.py",
        'return "validation" if any(item in prompt for item in items) else "test"',
        'return "test"',
        "recipes/test_datasets_roles.py",
    ),
    Mutant(
        "looks are spread evenly",
        "evaluation/looks.py",
        "(-(-num_steps * k * k // num_looks**2) for k",
        "(-(-num_steps * k // num_looks) for k",
        "evaluation/test_looks.py",
    ),
    Mutant(
        "comparisons are not corrected",
        "report/read/comparisons.py",
        "adjusted = holm([difference.p_value for difference in differences])",
        "adjusted = [difference.p_value for difference in differences]",
        "report/test_differences.py",
    ),
    Mutant(
        "the null model is left out",
        "paper/compare.py",
        "return rank_agreement(ours, theirs, groups, null=null)",
        "return rank_agreement(ours, theirs, groups)",
        "paper/test_compare.py",
    ),
    Mutant(
        "a broken sentence hides the steps beside it",
        "world/oracle.py",
        "len(reading.steps) if num_own or reading.is_of_the_language else 0",
        "len(reading.steps) if reading.is_of_the_language else 0",
        "world/test_oracle.py",
    ),
    Mutant(
        "what is not to be done is a step",
        "world/oracle.py",
        'NEGATIONS = ("not", "never", "no")',
        'NEGATIONS = ("no",)',
        "world/test_oracle.py",
    ),
    Mutant(
        "cells share what was measured of other weights",
        "jobs/before.py",
        '"weights": dict(served),',
        '"weights": {},',
        "jobs/test_measured_before.py",
    ),
    Mutant(
        "both judges learn from the same half",
        "recipes/cell_models.py",
        'half=JUDGE_HALVES["judge"], seed=MODEL_SEED + 1)',
        'half=JUDGE_HALVES["second_judge"], seed=MODEL_SEED + 1)',
        "recipes/test_judges.py",
    ),
)


def main() -> int:
    """Print the table; exit status 1 where a mutant survives."""
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    print("| Mistake | In | Tests | Result |\n| --- | --- | --- | --- |")
    survived = 0
    for mutant in chosen:
        told = result_of(mutant)
        survived += told != "dies"
        print(f"| {mutant.name} | `{mutant.file}` | `{mutant.tests}` | {told} |", flush=True)
    print(f"\n{len(chosen) - survived} of {len(chosen)} die.")
    return 1 if survived else 0


def result_of(mutant: Mutant) -> str:
    """Return whether the tests notice a mistake in a copy of the package."""
    file, tests = f"rpa_ray/{mutant.file}", [f"unit/{mutant.tests}"]
    told = {True: "dies", False: "SURVIVES"}
    try:
        return told[is_noticed(file, mutant.right, mutant.wrong, tests)]
    except RuntimeError as error:
        return str(error)


def is_noticed(file: str, right: str, wrong: str, tests: Sequence[str]) -> bool:
    """Return whether tests fail in a copy of the repository in which one text is exchanged.

    Raises:
        RuntimeError: The text is not there once, or the tests ended otherwise than by failing.
    """
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in COPIED:
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for path in [ROOT / "pyproject.toml", *ROOT.glob("*.md")]:
            shutil.copy(path, copy)
        path = copy / file
        text = path.read_text(encoding="utf-8")
        if text.count(right) != 1:
            raise RuntimeError("not applicable: mend the mutant")
        path.write_text(text.replace(right, wrong), encoding="utf-8")
        files = [f"tests/{test}" for test in tests]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", *files],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
        )
    # 1: some test failed; anything else says nothing about the mistake.
    if done.returncode not in (0, 1):
        raise RuntimeError(f"status {done.returncode}")
    return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
