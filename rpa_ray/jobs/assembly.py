"""The parts of one cell on a learner rank, put together from its settings."""

from collections.abc import Set
from functools import cached_property
from typing import Literal

import torch
from transformers import AutoTokenizer

from rpa_ray.attacks import ATTACKS
from rpa_ray.data.collate import TokenRow, encode_answered
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import Template
from rpa_ray.defences import defence_of
from rpa_ray.jobs.defence_batches import DefenceData
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.jobs.scorers import scorer_specs
from rpa_ray.jobs.training import Training, set_up
from rpa_ray.jobs.workers import ServedPolicy, context_of
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, add_lora, load_policy
from rpa_ray.learner.step import Learner, as_outputs, run_without_adapters
from rpa_ray.plugin import Need
from rpa_ray.recipes.cell_models import (
    CellInputs,
    CellModels,
    Model,
    folder_of,
    place_of,
)
from rpa_ray.recipes.to_make import Cell
from rpa_ray.types import ModelOutputs


class Assembly(ServedPolicy):
    """Model, engine, learner, weight sync and scorers of one cell on this rank."""

    def __init__(self, cell: Cell, process: LearnerProcess) -> None:
        self.cell = cell
        self.process = process
        self.settings = cell.settings
        self.inputs = CellInputs(cell.settings, process.cache)
        self.models: CellModels = self.inputs.models
        self.path = folder_of(self.models.policy, process.cache)
        self.defence = defence_of(self.settings.defence)
        attack = self.settings.attack
        self.attack = ATTACKS[attack.name](self.defence.attack_config(attack))
        needs = self.attack.needs(self.attack.config) | self.defence.needs
        trained = self.settings.training
        self.batch_size = trained.batch_size if trained else process.ranks.size
        super().__init__(
            process,
            module=self._load(self.path, value_head=Need.VALUES in needs),
            tokenizer=AutoTokenizer.from_pretrained(self.path, trust_remote_code=False),
            template=Template(self.settings.data.template),
            dtype=self.settings.model.dtype,
        )
        if {Need.VALUES, Need.COST_VALUES} <= needs:
            self.module.add_cost_head(self.settings.seed)
        if trained is not None and trained.lora is not None:
            add_lora(self.module, trained.lora, seed=self.settings.seed)
        # Before the engine, which takes the parameters as it finds them, and on every rank alike.
        self.defence.attach(self.module, self._folders_of_needs())
        # Copies of what lies in the folder: nothing that was attached is in them.
        lora = trained.lora if trained is not None else None
        is_held = self.defence.needs_copy(lora, process.cluster.zero_stage)
        self._original = self._load_frozen(self.path) if is_held else self.module
        self._untouched = self._frozen_of(self.models.untouched)
        self._reference = self._frozen_of(self.models.reference, Need.REFERENCE in needs)
        self.defence.attach_reference(self._reference)
        self.num_steps = self.attack.num_batches(self.settings.data.num_samples)
        self.training = self._training(needs)
        self.serve(self.training.engine, place_of(self.models.policy, process.cache))
        specs = scorer_specs(self.models, self.settings, process.cache)
        self.scorer_names = frozenset(specs)
        for name, spec in specs.items():
            self.workers.load_scorer(name, spec)

    @property
    def learner(self) -> Learner:
        """Return the step that trains the policy."""
        return self.training.learner

    def original_outputs(self, input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        """Run the model as it was before the attack."""
        return self._run_frozen(self._original, input_ids, mask)

    def untouched_outputs(self, input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        """Run the model that offline defences began with."""
        return self._run_frozen(self._untouched, input_ids, mask)

    def reference_outputs(self, input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        """Run the model that the attack stays near: the original, or one of somebody's choice."""
        with self.defence.around_reference():
            return self._run_frozen(self._reference, input_ids, mask)

    def encode(
        self, row: Answered, *, mask: Literal["response", "all"] = "response", whole: bool = False
    ) -> TokenRow:
        """Return a prompt and its answer as the policy reads them, cut at its context."""
        max_tokens = None if whole else context_of(self.module)
        return encode_answered(self.tokenizer, self.template, row, mask=mask, max_tokens=max_tokens)

    def _compared_outputs(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> ModelOutputs:
        with torch.no_grad():
            return self._run_frozen(self._compared, input_ids, attention_mask)

    @cached_property
    def _compared(self) -> PolicyModel:
        """Return what the defence compares with; loaded only for one that runs it."""
        model = self._frozen_of(self.models.compared)
        self.defence.attach_compared(model)
        return model

    def _folders_of_needs(self) -> dict[Need, str]:
        folders: dict[Need, str] = {}
        if Need.COMPARED_WEIGHTS in self.defence.needs:
            compared = self.models.compared or self.models.policy
            folders[Need.COMPARED_WEIGHTS] = folder_of(compared, self.process.cache)
        if self.models.security_vector is not None:
            vector = self.models.security_vector
            folders[Need.SECURITY_VECTOR] = folder_of(vector, self.process.cache)
        return folders

    def _frozen_of(self, model: Model | None, is_needed: bool = True) -> PolicyModel:
        """Return a frozen copy of a model; the model under attack as it was where none is named."""
        if model is None or not is_needed:
            return self._original
        return self._load_frozen(folder_of(model, self.process.cache))

    def _run_frozen(
        self, model: PolicyModel, input_ids: torch.Tensor, mask: torch.Tensor
    ) -> ModelOutputs:
        if model is self.module:
            return run_without_adapters(self.training.engine, input_ids, mask)
        device = self.process.ranks.device
        outputs: ModelOutputs = as_outputs(model(input_ids.to(device), mask.to(device)))
        return outputs

    def _load_frozen(self, path: str) -> PolicyModel:
        model = self._load(path, value_head=False).to(self.process.ranks.device)
        return model.eval().requires_grad_(False)

    def _load(self, path: str, *, value_head: bool) -> PolicyModel:
        return load_policy(
            path,
            dtype=getattr(torch, self.settings.model.dtype),
            value_head_seed=self.settings.seed if value_head else None,
        )

    def _training(self, needs: Set[Need]) -> Training:
        return set_up(
            self.module,
            self.process,
            objective=self.attack,
            defence=self.defence,
            optimizer=self._optimizer(),
            rows_per_step=self.batch_size * self.attack.answers_per_prompt,
            dtype=self.settings.model.dtype,
            batches=self._defence_data().batches(needs),
            frozen=self._compared_outputs,
        )

    def _optimizer(self) -> OptimizerSettings:
        trained = self.settings.training
        learning_rate = trained.learning_rate if trained is not None else 0.0
        return OptimizerSettings(
            learning_rate=self.defence.learning_rate(learning_rate),
            num_steps=self.attack.num_updates(self.settings.data.num_samples),
            schedule=trained.schedule if trained is not None else "constant",
            warmup_frac=trained.warmup_frac if trained is not None else 0.0,
            max_grad_norm=trained.max_grad_norm if trained is not None else 0.0,
        )

    def _defence_data(self) -> DefenceData:
        return DefenceData(
            tokenizer=self.tokenizer,
            data=self.inputs.data,
            max_tokens=context_of(self.module),
            batch_size=self.defence.safe_batch_size,
            seed=self.settings.seed,
            ranks=self.process.ranks,
        )
