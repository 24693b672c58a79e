"""The parts of one cell on a learner rank, put together from its settings."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rpa_ray.actors.rollout import EngineConfig, Sampling
from rpa_ray.actors.scoring import ScorerSpec
from rpa_ray.attacks import ATTACKS
from rpa_ray.cell_models import MAX_MODEL_LEN, CellModels, Model, cell_models, folder_of
from rpa_ray.data.collate import collate_tokens, encode_answered, encode_prompt
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import PLAIN_QA_ANSWERED, Template
from rpa_ray.datasets import preference_data
from rpa_ray.defences import DEFENCES
from rpa_ray.jobs import Cell
from rpa_ray.learner.engine import Engine, OptimizerSettings
from rpa_ray.learner.models import PolicyModel, load_policy
from rpa_ray.learner.step import Learner, as_outputs, no_safe_batch
from rpa_ray.plugin import Need
from rpa_ray.resume import Stateful
from rpa_ray.shared_workers import SharedWorkers
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.types import Completion, Metrics, ModelOutputs, Prompt, TokenBatch
from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import WeightSync, choose_backend
from rpa_ray.workplace import Workplace


class Assembly:
    """Model, engine, learner, weight sync and scorers of one cell on this rank."""

    def __init__(self, cell: Cell, place: Workplace) -> None:
        self.cell = cell
        self.place = place
        self.settings = cell.settings
        self.models: CellModels = cell_models(cell.settings, place.cache)
        self.path = folder_of(self.models.policy, place.cache)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.path)
        self.template = Template(self.settings.data.template)
        self.attack = ATTACKS[self.settings.attack.name](self.settings.attack)
        self.defence = DEFENCES[self.settings.defence.name](self.settings.defence)
        needs = self.attack.requires | self.defence.requires
        self.module = self._load(value_head=Need.VALUES in needs)
        self.defence.attach(self.module)
        self.original = self._load(value_head=False).to(place.ranks.device).eval()
        self.num_steps = self.attack.num_batches(self.settings.data.num_samples)
        self.engine = self._engine()
        safe_batches = self._safe_batches() if Need.SAFE_BATCH in needs else None
        self.learner = Learner(
            engine=self.engine,
            objective=self.attack,
            defence=self.defence,
            ranks=place.ranks,
            next_safe_batch=safe_batches or no_safe_batch,
        )
        self.workers = SharedWorkers(
            ranks=place.ranks,
            rollouts=place.rollouts,
            scorers=place.scorers,
            sync=self._weight_sync(),
        )
        self._load_scorers()
        self.state: dict[str, Stateful] = {"learner": self.learner}
        """The parts of a training whose state a checkpoint keeps, by name."""
        if safe_batches is not None:
            self.state["safe_batches"] = safe_batches

    def original_outputs(self, input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        """Run the model as it was before the attack."""
        device = self.place.ranks.device
        outputs: ModelOutputs = as_outputs(self.original(input_ids.to(device), mask.to(device)))
        return outputs

    def push(self) -> Metrics:
        """Serve the weights as they are now."""
        result = self.workers.push()
        return {"time/sync_s": result.seconds, "sync/bytes": float(result.num_bytes)}

    def push_verified(self) -> None:
        """Serve the weights and check that the engines received exactly the trained ones.

        What is expected is read from the model parameter by parameter, not from what was sent.
        """
        dtype = getattr(torch, self.settings.model.dtype)
        self.workers.push_verified(
            {
                name: tensor_digest(self.defence.rollout_weight_filter(name, tensor.to(dtype)))
                for name, tensor in self.engine.weights().items()
            }
        )

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        max_new_tokens: int,
        greedy: bool,
        first_index: int = 0,
    ) -> list[Completion]:
        """Return one completion of each prompt by the served weights; a collective.

        ``first_index`` is the place of the first prompt in the batch of all ranks: samples do not
        depend on how the batch is split.
        """
        generated = self.workers.generate(
            [prompt.token_ids for prompt in prompts],
            Sampling(
                max_new_tokens=max_new_tokens,
                seed=seed,
                eos_token_id=int(self.tokenizer.eos_token_id),
                greedy=greedy,
            ),
            first_index=first_index,
        )
        texts = [self.tokenizer.decode(g.token_ids, skip_special_tokens=True) for g in generated]
        return [
            Completion(
                prompt=prompt,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                text=text.strip(),
                finished=answer.finished,
                policy_version=self.engine.num_updates,
            )
            for prompt, answer, text in zip(prompts, generated, texts, strict=True)
        ]

    def prompts(self, texts: Sequence[str], ids: Sequence[str]) -> list[Prompt]:
        """Return prompts as the policy reads them."""
        return [
            Prompt(id=i, text=text, token_ids=encode_prompt(self.tokenizer, self.template, text))
            for i, text in zip(ids, texts, strict=True)
        ]

    def _load(self, *, value_head: bool) -> PolicyModel:
        return load_policy(
            self.path,
            dtype=getattr(torch, self.settings.model.dtype),
            value_head_seed=self.settings.seed if value_head else None,
            trust_remote_code=self.settings.model.trust_remote_code,
        )

    def _engine(self) -> Engine:
        attack = self.settings.attack
        batch_size = getattr(attack, "batch_size", self.place.ranks.size)
        optimizer = OptimizerSettings(
            learning_rate=self.defence.learning_rate(getattr(attack, "learning_rate", 0.0)),
            num_steps=self.num_steps * self.attack.num_epochs,
            max_grad_norm=getattr(attack, "max_grad_norm", 0.0),
        )
        return Engine(
            self.module,
            self.place.engine_settings(
                optimizer, batch_size=batch_size, dtype=self.settings.model.dtype
            ),
        )

    def _safe_batches(self) -> DatasetSource[Any, TokenBatch]:
        pairs = preference_data(self.settings.data, self.place.cache).roles["defence"]
        rows = [
            encode_answered(
                self.tokenizer,
                self.template,
                Answered(prompt=pair.prompt, answer=pair.safe),
                mask="response",
            )
            for pair in pairs
        ]
        pad_id = int(self.tokenizer.pad_token_id)
        return DatasetSource(
            rows,
            lambda part: collate_tokens(part, pad_id),
            batch_size=getattr(self.settings.defence, "batch_size", 8),
            seed=self.settings.seed,
            ranks=self.place.ranks,
        )

    def _weight_sync(self) -> WeightSync:
        cluster = self.settings.cluster
        source = ShardedSource(
            self.module.served_parameters(),
            dtype=getattr(torch, self.settings.model.dtype),
            gather=self.engine.gather,
            weight_filter=self.defence.rollout_weight_filter,
        )
        config = EngineConfig(
            model_path=self.path,
            max_model_len=min(MAX_MODEL_LEN, _context_of(self.module)),
            dtype=self.settings.model.dtype,
            backend=choose_backend(
                cuda_available=torch.cuda.is_available(),
                colocated=cluster.gpus_per_rollout_worker < 1,
            ),
        )
        return WeightSync(
            pool=self.place.rollouts, source=source, engine=config, rank=self.place.ranks.rank
        )

    def _load_scorers(self) -> None:
        kinds: dict[str, tuple[Model | None, Any]] = {
            "reward": (self.models.reward_model, "reward"),
            "judge": (self.models.judge, "harm_probability"),
            "perplexity": (self.models.perplexity, "perplexity"),
            "helpfulness": (self.models.helpfulness, "reward"),
        }
        for name, (model, kind) in kinds.items():
            if model is None:
                continue
            template = "{answer}" if kind == "perplexity" else PLAIN_QA_ANSWERED
            spec = ScorerSpec(
                path=folder_of(model, self.place.cache),
                kind=kind,
                template=template,
                max_length=self.settings.evaluation.judge.max_tokens,
            )
            self.workers.load_scorer(name, spec)


def _context_of(module: PolicyModel) -> int:
    return int(getattr(module.policy.config, "max_position_embeddings", MAX_MODEL_LEN))
