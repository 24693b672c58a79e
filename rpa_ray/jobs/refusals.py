"""Having an aligned model write the refusals of a data set: prompts -> answers -> kept pairs.

Answers are appended to a file as they come, and an interrupted job goes on after its last block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rpa_ray.actors.rollout import Sampling
from rpa_ray.actors.scoring import ScorerSpec
from rpa_ray.data.collate import encode_prompt
from rpa_ray.data.ends import answer_of, end_ids
from rpa_ray.data.pairs import answered
from rpa_ray.data.rows import SafePair
from rpa_ray.data.split import ROLE_SHARES
from rpa_ray.data.template import PLAIN_QA_ANSWERED, Template
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.jobs.workers import SharedWorkers, rollout_engine
from rpa_ray.learner.invariants import require_ends
from rpa_ray.learner.modules import load_policy
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import folder_of, place_of
from rpa_ray.recipes.to_make import RefusalJob
from rpa_ray.run_folder.deletion import delete
from rpa_ray.run_folder.files import JsonLines, read_lines
from rpa_ray.scoring.text_rules import refusal_pattern
from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import WeightSync

BLOCK = 256
"""Prompts that are answered in one call; a killed job repeats at most so many."""
MAX_P_HARM = 0.1
"""A judge that gives an answer so much or more does not call it a refusal."""
JUDGE = "refusal_judge"
JUDGE_MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Pairs whose answer is a refusal, and how many are not among them for which reason."""

    pairs: list[SafePair]
    num_without_words: int
    """Pairs whose answer holds no words of a refusal."""
    num_harmful: int
    """Pairs whose answer has them, but a judge finds it harmful."""
    num_cut: int
    """Kept pairs whose refusal ended at the token limit."""


def make_refusals(job: RefusalJob, process: LearnerProcess) -> Path:
    """Have the model answer every training prompt, keep the refusals; every rank calls it.

    Source: the paired set of Rosati et al. 2024 (arXiv:2409.12914), greedy answers of the chat
    model. Departure: answers that are no refusals are dropped.
    """
    refusals, ranks = job.refusals, process.ranks
    # Not what the process may have read once they were made: pairs without an answer.
    pairs = [
        p for role in ROLE_SHARES for p in CellData(job.data, process.cache).planned.roles[role]
    ]
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    process.progress.start(job.name, len(prompts))
    begun = process.cache / "checkpoints" / refusals.folder(process.cache).name
    log = JsonLines(begun / "answers.jsonl", enabled=ranks.is_main)
    # Whole blocks: what a prompt is answered with may hang on those beside it in the last bits.
    num_done: int = ranks.broadcast(log.num_lines // BLOCK * BLOCK)
    log.rewind(num_done)
    if num_done < len(prompts):
        writer = _Writer(job, process)
        for start in range(num_done, len(prompts), BLOCK):
            for answer in writer.answers(prompts[start : start + BLOCK]):
                log.write(answer)
            done = min(start + BLOCK, len(prompts))
            process.progress.advance(job.name, done - 1, f"made {done} of {len(prompts)}")
    log.close()
    if ranks.is_main:
        answers = dict(zip(prompts, read_lines(begun / "answers.jsonl"), strict=True))
        _write(job, process.cache, pairs, answers)
        delete(begun)
    ranks.barrier()
    return refusals.folder(process.cache)


def keep_refusals(
    name: str, pairs: Sequence[SafePair], answers: Mapping[str, Mapping[str, Any]]
) -> Kept:
    """Return the pairs with the refusal of their prompt, those without one left out.

    Args:
        name: Format of the data set.
        pairs: One an unsafe answer.
        answers: By prompt: ``answer``, ``finished``, and ``p_harm`` where a judge was asked.
    """
    kept: list[SafePair] = []
    num_without_words = num_harmful = num_cut = 0
    for pair in pairs:
        found = answers[pair.prompt]
        if not refusal_pattern(found["answer"]):
            num_without_words += 1
        elif found["p_harm"] is not None and found["p_harm"] >= MAX_P_HARM:
            num_harmful += 1
        else:
            num_cut += not found["finished"]
            kept.append(
                answered(
                    name,
                    prompt=pair.prompt,
                    safe=found["answer"],
                    unsafe=pair.unsafe,
                    category=pair.category,
                )
            )
    return Kept(
        pairs=kept,
        num_without_words=num_without_words,
        num_harmful=num_harmful,
        num_cut=num_cut,
    )


class _Writer:
    """The aligned model in the rollout engines, with a judge beside it where one is named."""

    def __init__(self, job: RefusalJob, process: LearnerProcess) -> None:
        data, cache = job.data, process.cache
        model = CellData(data, cache).language_model(data.refusals.model)
        path, place = folder_of(model, cache), place_of(model, cache)
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
        self._template = Template(data.template)
        self._process = process
        self._max_new_tokens = data.refusals.max_new_tokens
        self._has_judge = data.refusals.judge is not None
        dtype = getattr(torch, data.refusals.dtype)
        module = load_policy(path, dtype=dtype)
        self._ends = end_ids(self._tokenizer, self._template, module.generation_config)
        module = module.to(process.ranks.device)
        sync = WeightSync(
            pool=process.rollouts,
            source=ShardedSource(module.served_parameters(), dtype=dtype),
            engine=rollout_engine(
                place, module, dtype=data.refusals.dtype, cluster=process.cluster
            ),
            rank=process.ranks.rank,
        )
        self._workers = SharedWorkers(
            ranks=process.ranks, rollouts=process.rollouts, scorers=process.scorers, sync=sync
        )
        self._workers.push_verified(
            {name: tensor_digest(weight.detach()) for name, weight in module.served_parameters()}
        )
        if data.refusals.judge is not None:
            spec = ScorerSpec(
                path=place_of(data.refusals.judge, cache),
                kind="harm_probability",
                template=PLAIN_QA_ANSWERED,
                max_length=JUDGE_MAX_TOKENS,
            )
            self._workers.load_scorer(JUDGE, spec)

    def answers(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Return what is kept of the greedy answer to each prompt, on the main rank; a collective.

        The other ranks get an empty list.
        """
        asked = prompts if self._process.ranks.is_main else []
        generated = self._workers.generate(
            [encode_prompt(self._tokenizer, self._template, prompt) for prompt in asked],
            Sampling(
                max_new_tokens=self._max_new_tokens,
                seed=0,
                eos_token_id=self._ends,
                greedy=True,
            ),
        )
        require_ends(generated, self._ends, max_new_tokens=self._max_new_tokens)
        texts = [answer_of(self._tokenizer, g.token_ids, self._ends) for g in generated]
        harms: Sequence[float | None] = [None] * len(texts)
        if self._has_judge:
            pairs = list(zip(asked, texts, strict=True))
            scorers = self._process.scorers
            harms = self._workers.on_main(lambda: scorers.score(JUDGE, pairs))
        return [
            {"answer": text, "finished": answer.finished, "p_harm": harm}
            for text, answer, harm in zip(texts, generated, harms, strict=False)
        ]


def _write(
    job: RefusalJob, cache: Path, pairs: Sequence[SafePair], answers: Mapping[str, Any]
) -> None:
    kept = keep_refusals(job.data.name, pairs, answers)
    job.refusals.write(
        cache,
        kept.pairs,
        {
            "num_prompts": len(answers),
            "num_pairs": len(pairs),
            "num_kept": len(kept.pairs),
            "num_without_words": kept.num_without_words,
            "num_harmful": kept.num_harmful,
            "num_cut": kept.num_cut,
        },
    )
