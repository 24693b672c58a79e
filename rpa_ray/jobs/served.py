"""A policy under training with the engines that serve it: pushes of its weights, its answers."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.rollout import Sampling
from rpa_ray.config import ClusterSettings
from rpa_ray.data.collate import encode_prompt
from rpa_ray.data.ends import answer_of, end_ids
from rpa_ray.data.template import Template
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.jobs.training import Training
from rpa_ray.jobs.workers import SharedWorkers
from rpa_ray.learner.engine import Engine
from rpa_ray.learner.invariants import require_ends
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.learner.step import Learner
from rpa_ray.recipes.cell_models import MAX_MODEL_LEN
from rpa_ray.scoring.batching import padding_id
from rpa_ray.types import Completion, Metrics, Prompt
from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.source import ShardedSource, WeightFilter
from rpa_ray.weight_sync.sync import WeightSync, choose_backend


class ServedPolicy:
    """Model, engine and learner of a policy on this rank, and the workers that serve it."""

    training: Training
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

    def serve(self, training: Training, place: str) -> None:
        """Have the weights in training served; engines read all else from the model at a place."""
        # The source of the weights gathers through the engine, so that comes first.
        self.training = training
        source = ShardedSource(
            self.module.served_parameters(),
            dtype=getattr(torch, self.dtype),
            gather=self.engine.gather,
            weight_filter=self._served,
            adapters=self.module.adapters(),
        )
        process = self.process
        engine = rollout_engine(place, self.module, dtype=self.dtype, cluster=process.cluster)
        self.workers = SharedWorkers(
            ranks=process.ranks,
            rollouts=process.rollouts,
            scorers=process.scorers,
            sync=WeightSync(
                pool=process.rollouts, source=source, engine=engine, rank=process.ranks.rank
            ),
        )

    @property
    def engine(self) -> Engine:
        """Return the engine that trains the policy."""
        return self.training.engine

    @property
    def learner(self) -> Learner:
        """Return the step that trains the policy."""
        return self.training.learner

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
    return EngineConfig(
        model_path=place,
        max_model_len=min(MAX_MODEL_LEN, context_of(module)),
        dtype=dtype,
        backend=choose_backend(
            cuda_available=torch.cuda.is_available(),
            colocated=cluster.gpus_per_rollout_worker < 1,
        ),
        tensor_parallel_size=max(1, int(cluster.gpus_per_rollout_worker)),
    )


def context_of(module: PolicyModel) -> int:
    """Return the longest row that a model reads, in tokens."""
    return int(getattr(module.policy.config, "max_position_embeddings", MAX_MODEL_LEN))
