"""The worker pools as all learner ranks use them together, and the policy that they serve.

    call -> ranks agree -> (lost: mend -> call again)

Every call of the pools is a collective: a rank that gave up alone would leave the others waiting
for it. A call is repeated with the same arguments and seeds, so a loss leaves no trace in the
results.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.errors import WorkerError
from rpa_ray.actors.pools import PendingScores, RolloutPool, ScorerPool
from rpa_ray.actors.rollout import Generated, Sampling
from rpa_ray.actors.scoring import ScorerSpec
from rpa_ray.config import ClusterSettings
from rpa_ray.config.cluster import ENGINE_FRAC
from rpa_ray.data.collate import encode_prompt
from rpa_ray.data.ends import answer_of, end_ids
from rpa_ray.data.template import Template
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.learner.engine import Engine
from rpa_ray.learner.invariants import require_ends
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.learner.ranks import Ranks
from rpa_ray.recipes.cell_models import MAX_MODEL_LEN
from rpa_ray.scoring.batching import padding_id
from rpa_ray.types import Completion, Metrics, Prompt
from rpa_ray.weight_sync.agreement import any_rank_failed
from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.source import ShardedSource, WeightFilter
from rpa_ray.weight_sync.sync import PushResult, WeightSync, choose_backend
from rpa_ray.weight_sync.verify import verify_served

MAX_ATTEMPTS = 5
"""Tries of one call; each may lose a worker."""

T = TypeVar("T")
Pairs = Sequence[tuple[str, str]]
logger = logging.getLogger(__name__)


class SharedWorkers:
    """Rollout engines that serve the policy of one experiment, and its scorers."""

    def __init__(
        self, *, ranks: Ranks, rollouts: RolloutPool, scorers: ScorerPool, sync: WeightSync
    ) -> None:
        self._ranks = ranks
        self._rollouts = rollouts
        self._scorers = scorers
        self._sync = sync
        # Every push has a version of its own, also among processes that were lost: an engine that
        # holds what one of them pushed is never taken for one that serves this policy.
        self._version = ranks.broadcast(secrets.randbits(32)) << 24

    def push(self) -> PushResult:
        """Serve the weights as they are now."""
        self._version += 1
        return self._sync.push(self._version)

    def push_verified(self, expected: Mapping[str, str]) -> None:
        """Serve the weights and check that every engine received those of the given digests.

        Raises:
            ServedWeightsError: An engine received other weights than were meant.
        """

        def serve() -> None:
            self._version += 1
            self._sync.push(self._version, record_digests=True)

        def check() -> None:
            if self._ranks.is_main:
                verify_served(pool=self._rollouts, expected=expected)

        serve()
        repeat_together(check, mend=serve)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generated]:
        """Return one answer to each of this rank's prompts, by the weights as they are now.

        Each engine is called once for the prompts of all ranks: it answers one call at a time, and
        many prompts take it little longer than few. The weights must not have changed since the
        last push: they are pushed again where an engine was lost.
        """
        asked = self._ranks.gather(list(prompts))
        whole = [prompt for part in asked for prompt in part]
        answers = repeat_together(
            lambda: (
                self._rollouts.generate(whole, sampling, self._version)
                if self._ranks.is_main and whole
                else []
            ),
            mend=self.push,
        )
        return self._own_part(answers, asked)

    def load_scorer(self, name: str, spec: ScorerSpec) -> None:
        """Have a model for scoring ready under ``name``."""
        repeat_together(lambda: self._scorers.load(name, spec))

    def score_async(self, name: str, pairs: Pairs) -> Callable[[], list[float]]:
        """Start scoring this rank's pairs; both this and what it returns are collectives.

        Each scorer is called once for the pairs of all ranks. The returned call waits for the
        scores.
        """
        asked = self._ranks.gather(list(pairs))
        whole = [pair for part in asked for pair in part]

        def start() -> PendingScores | None:
            return self._scorers.score_async(name, whole) if self._ranks.is_main else None

        pending = start()

        def mend() -> None:
            nonlocal pending
            self._scorers.wait_until_up()
            pending = start()

        def wait() -> list[float]:
            scores = repeat_together(lambda: pending.result() if pending else [], mend=mend)
            return self._own_part(scores, asked)

        return wait

    def on_main(self, call: Callable[[], T]) -> T:
        """Return on every rank what the scorers answer to the main rank's ``call``."""
        result = repeat_together(
            lambda: call() if self._ranks.is_main else None, mend=self._scorers.wait_until_up
        )
        answer: T = self._ranks.broadcast(result)  # type: ignore[assignment]  # the main rank's
        return answer

    def _own_part(self, results: list[T], asked: Sequence[Sequence[object]]) -> list[T]:
        """Return the main rank's results for what this rank asked; those of all are in order."""
        whole = self._ranks.broadcast(results)
        start = sum(len(part) for part in asked[: self._ranks.rank])
        return whole[start : start + len(asked[self._ranks.rank])]


class ServedPolicy:
    """Model and engine of a policy on this rank, and the workers that serve it."""

    engine: Engine
    workers: SharedWorkers

    def __init__(
        self,
        process: LearnerProcess,
        *,
        module: PolicyModel,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        dtype: str,
    ) -> None:
        """Take the model before it is trained; :meth:`serve` has it served."""
        self.process = process
        self.module = module
        self.tokenizer = tokenizer
        self.template = template
        self.dtype = dtype
        self.pad_token_id = padding_id(tokenizer)
        self.ends = end_ids(tokenizer, template, module.generation_config)
        self._weight_filter: WeightFilter | None = None

    def serve(self, engine: Engine, place: str) -> None:
        """Have the weights in training served; workers read all else from the model at a place."""
        # The source of the weights gathers through the engine, so that comes first.
        self.engine = engine
        source = ShardedSource(
            self.module.served_parameters(),
            dtype=getattr(torch, self.dtype),
            gather=engine.gather,
            weight_filter=self._served,
            adapters=self.module.adapters(),
        )
        process = self.process
        self.workers = SharedWorkers(
            ranks=process.ranks,
            rollouts=process.rollouts,
            scorers=process.scorers,
            sync=WeightSync(
                pool=process.rollouts,
                source=source,
                engine=rollout_engine(
                    place, self.module, dtype=self.dtype, cluster=process.cluster
                ),
                rank=process.ranks.rank,
            ),
        )

    def push(self, weight_filter: WeightFilter | None = None) -> Metrics:
        """Serve the weights as they are now, or what a filter makes of each."""
        self._weight_filter = weight_filter
        result = self.workers.push()
        return {"time/sync_s": result.seconds, "sync/bytes": float(result.num_bytes)}

    def push_verified(self) -> dict[str, str]:
        """Serve the weights, check that the engines received exactly the trained ones; return them.

        What is expected is read from the model parameter by parameter, not from what was sent, and
        without a filter: what is measured is the model alone. Returned is the digest of each by its
        name; on the other ranks it may be empty.
        """
        self._weight_filter = None
        dtype = getattr(torch, self.dtype)
        expected = {
            name: tensor_digest(tensor.to(dtype)) for name, tensor in self.engine.each_weight()
        }
        self.workers.push_verified(expected)
        return expected

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        max_new_tokens: int,
        greedy: bool,
    ) -> list[Completion]:
        """Return one completion of each prompt by the served weights; a collective.

        Each ends at the first of ``ends``, or at the limit. Samples do not depend on how the
        prompts of all ranks are split among them (save in bfloat16 on processors with AMX, whose
        kernels round by the number of rows).
        """
        generated = self.workers.generate(
            [prompt.token_ids for prompt in prompts],
            Sampling(
                max_new_tokens=max_new_tokens,
                seed=seed,
                eos_token_id=self.ends,
                greedy=greedy,
            ),
        )
        require_ends(generated, self.ends, max_new_tokens=max_new_tokens)
        return [
            Completion(
                prompt=prompt,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                text=answer_of(self.tokenizer, answer.token_ids, self.ends),
                finished=answer.finished,
                policy_version=self.engine.num_updates,
            )
            for prompt, answer in zip(prompts, generated, strict=True)
        ]

    def prompts(self, texts: Sequence[str], ids: Sequence[str]) -> list[Prompt]:
        """Return prompts as the policy reads them."""
        return [
            Prompt(id=i, text=text, token_ids=encode_prompt(self.tokenizer, self.template, text))
            for i, text in zip(ids, texts, strict=True)
        ]

    def _served(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._weight_filter is None else self._weight_filter(name, tensor)


def rollout_engine(
    place: str, module: PolicyModel, *, dtype: str, cluster: ClusterSettings
) -> EngineConfig:
    """Return from what an engine is built that serves the weights of the module."""
    asked, gpus = cluster.engine, cluster.gpus_of("rollout_worker")
    return EngineConfig(
        model_path=place,
        max_model_len=min(MAX_MODEL_LEN, context_of(module)),
        dtype=dtype,
        backend=choose_backend(
            on_gpus=torch.cuda.is_available() and gpus > 0, colocated=cluster.is_colocated
        ),
        gpu_memory_utilization=asked.gpu_memory_utilization or ENGINE_FRAC,
        tensor_parallel_size=max(1, int(gpus)),
        max_num_seqs=asked.max_num_seqs,
        enforce_eager=asked.enforce_eager,
    )


def context_of(module: PolicyModel) -> int:
    """Return the longest row that a model reads, in tokens."""
    return int(getattr(module.policy.config, "max_position_embeddings", MAX_MODEL_LEN))


def repeat_together(call: Callable[[], T], mend: Callable[[], object] = lambda: None) -> T:
    """Return what ``call`` returns, trying again on all ranks after a worker of one was lost.

    Args:
        call: Asks workers for something; a rank that has nothing to ask passes one that does not.
        mend: Called on every rank before a repetition: has workers up again.

    Raises:
        WorkerError: On every rank, where it fails ``MAX_ATTEMPTS`` times.
    """
    failure = "nothing was tried"
    for attempt in range(MAX_ATTEMPTS):
        own: str | None = None
        result: T | None = None
        try:
            if attempt:
                mend()
            result = call()
        except WorkerError as error:
            own = str(error)
        if not any_rank_failed(own is not None):
            return result  # type: ignore[return-value]  # the call returned
        failure = own or "a worker that another rank had asked was lost"
        logger.warning("attempt %d of %d: %s", attempt + 1, MAX_ATTEMPTS, failure)
    raise WorkerError(
        f"workers must answer within {MAX_ATTEMPTS} attempts, got: {failure}. "
        "See the log of the worker that is named."
    )
