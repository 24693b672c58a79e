"""Hardening on the model's own answers: prompts, rewards and the source of rollouts."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from rpa_ray.actors.scoring import ScorerSpec
from rpa_ray.attacks import ATTACKS
from rpa_ray.attacks.grpo import GRPO
from rpa_ray.data.template import PLAIN_QA_ANSWERED, Template
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.jobs.scorers import (
    DIALOGUE_ANSWERED,
    MAX_TEXT_TOKENS,
    as_dialogues,
)
from rpa_ray.jobs.training import Training
from rpa_ray.jobs.workers import Pairs, ServedPolicy
from rpa_ray.learner.modules import PolicyModel, load_policy
from rpa_ray.plugin import OnlineDefence, SampledAnswer, SampledOfflineDefence
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import folder_of, place_of
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.sampled_prompts import harmless_prompts, restricted_prompts
from rpa_ray.recipes.to_make import ModelJob
from rpa_ray.scoring.text_rules import information_pattern, refusal_pattern
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import Completion, ModelOutputs, Prompt

JUDGE, HELPFULNESS = "hardening_judge", "hardening_helpfulness"


def grpo_of(defence: SampledOfflineDefence) -> GRPO:
    """Return the objective that learns from the answers."""
    config = defence.config
    settings = {
        "name": "grpo",
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "group_size": config.group_size,
        "max_new_tokens": config.max_new_tokens,
        "kl_coef": config.kl_coef,
        # No reward model of an attacker: the defence has rewards of its own.
        "reward": "rule",
    } | defence.grpo_settings
    attack = ATTACKS["grpo"](GRPO.Config.model_validate(settings))
    assert isinstance(attack, GRPO)
    return attack


class SampledHardening(ServedPolicy):
    """The model that a hardening trains, served, with the scorers of its answers."""

    def __init__(
        self,
        job: ModelJob,
        defence: SampledOfflineDefence,
        training: Training,
        tokenizer: PreTrainedTokenizerBase,
        process: LearnerProcess,
    ) -> None:
        """Serve the model of a training and load its scorers; a collective."""
        recipe = job.recipe
        module = training.engine.module
        assert isinstance(module, PolicyModel) and recipe.start is not None
        template = Template(str(recipe.rows.settings["template"]))
        super().__init__(
            process, module=module, tokenizer=tokenizer, template=template, dtype=recipe.job.dtype
        )
        self.serve(training.engine, place_of(recipe.start, process.cache))
        self._recipe, self._defence, self._learner = recipe, defence, training.learner
        data = CellData(job.data, process.cache)
        restricted = restricted_prompts(defence.config, data, seed=recipe.seed)
        self._prompts = [self._that_fit("restricted", restricted)]
        self._restricted_texts = {prompt.text for prompt in self._prompts[0]}
        if defence.reads_harmless:
            harmless = harmless_prompts(defence.config, data)
            self._prompts.append(self._that_fit("harmless", harmless))
        self._answers: list[SampledAnswer] = []
        self._judged: tuple[Pairs, Callable[[], list[float]]] | None = None
        judge = recipe.scored_by["judge"]
        judged = judge.job.max_tokens if isinstance(judge, ModelRecipe) else MAX_TEXT_TOKENS
        self.workers.load_scorer(
            JUDGE,
            ScorerSpec(
                path=place_of(judge, process.cache),
                kind="harm_probability",
                template=PLAIN_QA_ANSWERED,
                max_length=judged,
            ),
        )
        helpfulness = recipe.scored_by.get("helpfulness")
        self._rates_helpfulness = helpfulness is not None
        self._asks_dialogues = not isinstance(helpfulness, ModelRecipe)
        if helpfulness is not None:
            self.workers.load_scorer(
                HELPFULNESS,
                ScorerSpec(
                    path=place_of(helpfulness, process.cache),
                    kind="reward",
                    template=DIALOGUE_ANSWERED if self._asks_dialogues else PLAIN_QA_ANSWERED,
                    max_length=MAX_TEXT_TOKENS,
                ),
            )

    def source(self) -> RolloutSource:
        """Return where the batches come from."""
        config, learner = self._defence.config, self._learner

        def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
            return self.complete(
                prompts, seed=seed, max_new_tokens=config.max_new_tokens, greedy=False
            )

        assert isinstance(learner.objective, GRPO)
        return RolloutSource(
            in_turn(self._prompts, config.num_steps * config.batch_size),
            attack=learner.objective,
            learner=learner,
            parts=RolloutParts(
                generate=generate,
                reward=self._reward,
                judge=self._judge,
                reference=learner.context().frozen,
                push=self.push,
            ),
            batch_size=config.batch_size,
            group_size=config.group_size,
            pad_token_id=self.pad_token_id,
            vocab_size=self.module.vocab_size,
            seed=self._recipe.seed,
            served_dtype=self.dtype,
            observe=lambda step, completions, scores: None,
            watch=self._measures,
        )

    def _reward(self, pairs: Pairs) -> Callable[[], list[float]]:
        """Start scoring, and return what waits for the rewards of the defence."""
        pending, pending_harm = self._helpfulness(pairs), self._judge(pairs)

        def wait() -> list[float]:
            scores = zip(pairs, pending_harm(), pending(), strict=True)
            self._answers = [self._answer(*pair, harm, helpful) for pair, harm, helpful in scores]
            return self._defence.rewards(self._answers)

        return wait

    def _judge(self, pairs: Pairs) -> Callable[[], list[float]]:
        """Start scoring, once for a list that both the reward and the record ask about."""
        asked = self._judged
        if asked is None or asked[0] is not pairs:
            asked = self._judged = (pairs, self.workers.score_async(JUDGE, pairs))
        return asked[1]

    def _helpfulness(self, pairs: Pairs) -> Callable[[], list[float]]:
        if not self._rates_helpfulness:
            return lambda: [math.nan] * len(pairs)
        asked = as_dialogues(pairs) if self._asks_dialogues else pairs
        return self.workers.score_async(HELPFULNESS, asked)

    def _answer(self, prompt: str, text: str, p_harm: float, helpfulness: float) -> SampledAnswer:
        return SampledAnswer(
            is_restricted=prompt in self._restricted_texts,
            num_tokens=len(self.tokenizer(text, add_special_tokens=False)["input_ids"]),
            refuses=refusal_pattern(text),
            informs=information_pattern(text),
            p_harm=p_harm,
            helpfulness=helpfulness,
        )

    def _measures(self) -> Mapping[str, Sequence[float]]:
        return self._defence.measures(self._answers)

    def _that_fit(self, kind: str, texts: Sequence[str]) -> list[Prompt]:
        """Return the prompts that leave room for an answer.

        Raises:
            ValueError: none does.
        """
        config = self._defence.config
        prompts = self.prompts(texts, [f"{kind}-{i}" for i in range(len(texts))])
        room = config.max_tokens - config.max_new_tokens
        fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= room]
        if not fitting:
            shortest = min(len(prompt.token_ids) for prompt in prompts)
            raise ValueError(
                f"defence.max_tokens must leave room for defence.max_new_tokens after a {kind} "
                f"prompt, the shortest of which has {shortest} tokens, got {config.max_tokens}. "
                "Raise it."
            )
        return fitting


def in_turn(kinds: Sequence[Sequence[Prompt]], num: int) -> list[Prompt]:
    """Return ``num`` prompts, of each kind by turns; where there are fewer they come again."""
    each = num // len(kinds)
    return [prompts[i % len(prompts)] for i in range(each) for prompts in kinds]


class StartModel:
    """The model that a training began with, frozen; loaded by the first call."""

    def __init__(self, recipe: ModelRecipe, process: LearnerProcess, hooks: OnlineDefence) -> None:
        self._recipe, self._process, self._hooks = recipe, process, hooks

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ModelOutputs:
        """Return its outputs, without gradients."""
        device = self._process.ranks.device
        with torch.no_grad():
            outputs = self._model(input_ids.to(device), attention_mask.to(device))
        return ModelOutputs.of(outputs)

    @cached_property
    def _model(self) -> PolicyModel:
        assert self._recipe.start is not None
        folder = folder_of(self._recipe.start, self._process.cache)
        dtype = getattr(torch, self._recipe.job.dtype)
        model = load_policy(folder, dtype=dtype).to(self._process.ranks.device)
        self._hooks.attach_compared(model)
        return model.eval().requires_grad_(False)
