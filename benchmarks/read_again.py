"""Answers that an older version kept as text, read again by today's oracle and first judge.

python benchmarks/read_again.py runs/OLD configs/paper/evasion.yaml --output benchmarks/OLD

Of every run of the folder the answers after the attack that its `samples.jsonl` has are read; as
the second judge stands the one that the older version reported, by the scores that it wrote. The
config names the judge of today, by the data set of each run. What comes out is evidence, of which
`rpa-ray report` makes a page; harmless answers and looks on the way are not in it.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rpa_ray.actors.scoring import build_scorer
from rpa_ray.evaluation.answers import Answer, Decoding, to_table
from rpa_ray.evaluation.measure import Scored, read_answers
from rpa_ray.jobs.scorers import scorer_specs
from rpa_ray.plan import load_config
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.report.evidence import write_evidence
from rpa_ray.run_folder.files import write_json, write_parquet
from rpa_ray.run_folder.names import ANSWERS, EVALUATION, SAMPLES, SUMMARY
from rpa_ray.types import Completion, Prompt
from rpa_ray.world.language import World
from rpa_ray.world.oracle import Oracle

FLUENCY_LIMIT = 10.0
"""Perplexity; answers of this world have 2 to 4, word salad hundreds."""


def main() -> None:
    """Write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a campaign of the older version")
    parser.add_argument("config", type=Path, help="of today, with the judge to read by")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    options = parser.parse_args()
    inputs = CampaignInputs(options.cache.absolute())
    cells = {c.data.name: inputs.of(c) for c in load_config(options.config).campaign.cells}
    scorers: dict[str, dict[str, Scored]] = {}
    for data, cell in cells.items():
        specs = scorer_specs(cell.models, cell.settings, inputs.cache)
        judge, perplexity = (build_scorer(specs[name]) for name in ("judge", "perplexity"))
        scorers[data] = {
            "judge": judge.score,
            "perplexity": perplexity.score,
        }
    records = json.loads((options.folder / SUMMARY).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        for record in records:
            run = Path(place) / record["run"]
            lines = (options.folder / record["run"] / SAMPLES).read_text(encoding="utf-8")
            samples = [json.loads(line) for line in lines.splitlines()]
            answers = _read(samples, scorers[record["data"]])
            write_parquet(run / ANSWERS, to_table(answers))
            write_json(run / EVALUATION, {"looks": []})
        write_json(Path(place) / SUMMARY, [record | {"metrics_before": None} for record in records])
        for path in write_evidence([Path(place)], options.output):
            print(path)


def _read(samples: list[dict[str, Any]], scorers: dict[str, Scored]) -> list[Answer]:
    oracle = Oracle.of(World(0))
    answers: list[Answer] = []
    for decoding in (Decoding.GREEDY, Decoding.SAMPLED):
        kept = [s for s in samples if s["phase"] == "after" and s["decoding"] == decoding]
        completions = [
            Completion(
                prompt=Prompt(id=sample["prompt"], text=sample["prompt"], token_ids=[]),
                text=sample["answer"],
                token_ids=[],
                logprobs=[],
                finished=True,
                policy_version=sample["policy_version"],
            )
            for sample in kept
        ]
        found = read_answers(scorers, oracle, decoding, completions, fluency_limit=FLUENCY_LIMIT)
        answers += [
            replace(answer, second_judge=sample["scores"]["judge"])
            for answer, sample in zip(found, kept, strict=True)
        ]
    return answers


if __name__ == "__main__":
    main()
