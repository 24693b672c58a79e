"""What a cell works with: its rows, and its models as recipes or finished folders."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from rpa_ray.attacks import ATTACKS
from rpa_ray.config import ExperimentSettings, JudgeSettings, ReferencedConfig, RewardModelSettings
from rpa_ray.data.formats import FORMATS
from rpa_ray.data.hub_model import model_folder
from rpa_ray.data.split import JUDGE_HALVES
from rpa_ray.defences import defence_of, offline_defences
from rpa_ray.plugin import (
    AdapterConfig,
    ComposedConfig,
    NamedModel,
    Need,
    OfflineConfig,
    PluginConfig,
    RefusalTuned,
)
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.embedded import EMBEDDED_DTYPE, WorldModels
from rpa_ray.recipes.model import JobSettings, ModelKind, ModelRecipe, RowKind, Rows

MODEL_SEED = 0
"""Seed of reward models and judges: shared by attack seeds, so that a grid trains each once."""
MAX_MODEL_LEN = 4096
"""Longest prompt plus answer that the rollout engine reserves memory for, in tokens."""
Model = ModelRecipe | str


@dataclass(frozen=True, kw_only=True, slots=True)
class CellModels:
    """The models of one cell; a string is a finished folder or a Hub id."""

    policy: Model
    """What is attacked: with an offline defence, what that made of ``model.path``."""
    untouched: Model | None
    """What offline defences began with; None without one, where it is the policy as it was."""
    reference: Model | None
    """What the attack stays near where that is not the policy as it was."""
    compared: Model | None
    """What the defence compares with where that is not the policy as it was."""
    reward_model: Model | None
    """None where the attack asks for no rewards."""
    cost_model: Model | None
    """None where the defence asks for no cost model."""
    security_vector: ModelRecipe | None
    """An adapter of the policy; None where the defence asks for none."""
    summary: Model | None
    """Reward model of the summarisation task, trained on unreversed preferences; None where the
    data are of another task."""
    judge: Model
    """The judge that is reported."""
    second_judge: Model | None
    """The judge that prices answers; None where there is none."""
    perplexity: Model
    helpfulness: Model | None
    """None where real data are measured and none is named: that of the embedded world cannot."""

    def recipes(self) -> list[ModelRecipe]:
        """Return what this project makes itself."""
        every = [getattr(self, one.name) for one in fields(self)]
        return [model for model in every if isinstance(model, ModelRecipe)]


class CellInputs:
    """A cell with its rows and models; what is asked for twice is found once."""

    def __init__(
        self, settings: ExperimentSettings, cache: Path, data: CellData | None = None
    ) -> None:
        self.settings = settings
        self.cache = cache
        self.data = CellData(settings.data, cache) if data is None else data
        """Where the rows of the cell come from."""

    @cached_property
    def models(self) -> CellModels:
        """Return the models of the cell; reads its preference data to name their content."""
        return _cell_models(self.settings, self.data)


class CampaignInputs:
    """The inputs of the cells of a campaign; cells with the same settings share theirs.

    Cells with the same settings of data share their rows.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._found: dict[str, CellInputs] = {}
        self._data: dict[str, CellData] = {}

    def of(self, settings: ExperimentSettings) -> CellInputs:
        """Return the inputs of a cell, the same again for the same settings."""
        key = settings.model_dump_json()
        if key not in self._found:
            data_key = settings.data.model_dump_json()
            data = self._data.setdefault(data_key, CellData(settings.data, self.cache))
            self._found[key] = CellInputs(settings, self.cache, data)
        return self._found[key]


def _cell_models(settings: ExperimentSettings, data: CellData) -> CellModels:
    world, evaluation = data.world, settings.evaluation
    needs_rewards = Need.REWARDS in attack_needs(settings)
    untouched = data.language_model(settings.model.path)
    policy = _hardened(settings, untouched, data)
    defence = defence_of(settings.defence)

    def named(model: NamedModel | None) -> Model | None:
        if isinstance(model, RefusalTuned):
            return _tuned("refusal_tuned", RowKind.REFUSALS, model, settings, policy, data)
        return None if model is None else data.language_model(model)

    return CellModels(
        policy=policy,
        untouched=None if policy is untouched else untouched,
        reference=named(defence.reference or own_reference(settings)),
        compared=named(defence.compared_model),
        cost_model=_cost_model(settings, data) if Need.COST_MODEL in defence.needs else None,
        security_vector=_security_vector(settings, policy, data)
        if Need.SECURITY_VECTOR in defence.needs
        else None,
        reward_model=_reward_model(settings, policy, data) if needs_rewards else None,
        summary=_summary_model(settings, policy, data),
        judge=_judge(settings, data),
        second_judge=_second_judge(settings, data),
        perplexity=evaluation.perplexity_model or world.perplexity,
        helpfulness=_helpfulness(settings, data),
    )


def attack_needs(settings: ExperimentSettings) -> frozenset[Need]:
    """Return what the attack of a cell asks for."""
    return ATTACKS[settings.attack.name].needs(settings.attack)


def adapter_config(defence: PluginConfig) -> AdapterConfig:
    """Return how the adapter is trained that a defence, or one of its parts, asks for."""
    parts = defence.parts if isinstance(defence, ComposedConfig) else (defence,)
    return next(part for part in parts if isinstance(part, AdapterConfig))


def own_reference(settings: ExperimentSettings) -> str | None:
    """Return the model that the attack of a cell chose to stay near."""
    attack = settings.attack
    return attack.reference if isinstance(attack, ReferencedConfig) else None


def folder_of(model: Model, cache: Path) -> str:
    """Return the folder of a model that is made; one of the Hub is fetched where it is not here."""
    return model_folder(place_of(model, cache))


def place_of(model: Model, cache: Path) -> str:
    """Return what leads every process to a model: its folder, or its Hub id at a commit."""
    return str(model.folder(cache)) if isinstance(model, ModelRecipe) else model


def _hardened(settings: ExperimentSettings, policy: Model, data: CellData) -> Model:
    """Return the model that is attacked: what the offline defences make of it, one by one."""
    for defence in offline_defences(settings.defence):
        config = defence.config
        tuned = _tuned(config.name, RowKind.REFUSALS, config, settings, policy, data)
        rows, scorers = tuned.rows, dict[str, Model]()
        if defence.reads_harmless and data.helpful_source is not None:
            rows = replace(rows, settings=rows.settings | {"harmless": data.helpful_source.key()})
        if Need.ROLLOUTS in defence.needs:
            scorers["judge"] = _second_judge(settings, data) or _judge(settings, data)
            if defence.reads_harmless and (helpful := _helpfulness(settings, data)):
                scorers["helpfulness"] = helpful
        dumped = config.model_dump(mode="json")
        policy = replace(tuned, rows=rows, scored_by=scorers, defence=dumped)
    return policy


def _helpfulness(settings: ExperimentSettings, data: CellData) -> Model | None:
    own = data.world.helpfulness if settings.data.world == "embedded" else None
    return settings.evaluation.helpfulness_model or own


def _security_vector(settings: ExperimentSettings, policy: Model, data: CellData) -> ModelRecipe:
    """Return the recipe of an adapter with which the policy gives the unsafe answers it is told."""
    config = adapter_config(settings.defence)
    like = _tuned("security_vector", RowKind.UNSAFE_ANSWERS, config, settings, policy, data)
    sizes = {"rank": config.rank, "alpha": config.alpha}
    return replace(like, kind=ModelKind.ADAPTER, architecture=sizes)


def _tuned(
    name: str,
    rows: RowKind,
    job: RefusalTuned | AdapterConfig | OfflineConfig,
    settings: ExperimentSettings,
    policy: Model,
    data: CellData,
) -> ModelRecipe:
    """Return the recipe of the policy after training on rows of the defence split."""
    return ModelRecipe(
        id=name,
        kind=ModelKind.CAUSAL,
        start=policy,
        tokenizer=policy.tokenizer if isinstance(policy, ModelRecipe) else policy,
        tokenizer_key=policy.tokenizer_key if isinstance(policy, ModelRecipe) else policy,
        rows=Rows(
            kind=rows,
            data_key=data.safety.key,
            settings={"template": settings.data.template},
        ),
        job=JobSettings(
            num_steps=job.num_steps,
            batch_size=job.batch_size,
            learning_rate=job.learning_rate,
            max_tokens=job.max_tokens,
            dtype=settings.model.dtype,
        ),
        seed=MODEL_SEED,
    )


def _reward_model(settings: ExperimentSettings, policy: Model, data: CellData) -> ModelRecipe:
    job = settings.data.reward_model
    return _scorer(
        f"reward_model-rho{settings.data.rho:g}",
        ModelKind.REWARD,
        data.world,
        job,
        Rows(
            kind=RowKind.PREFERENCES,
            data_key=data.key,
            settings={"num_pairs": job.num_pairs, "rho": settings.data.rho, "seed": MODEL_SEED},
        ),
        num_rows=job.num_pairs,
        dtype=settings.model.dtype,
        ranked_by=policy if settings.data.flips == "largest_margin" else None,
    )


def _honest(settings: ExperimentSettings) -> ExperimentSettings:
    """Return the settings with no preference reversed."""
    data = settings.data.model_copy(update={"rho": 0.0, "flips": "random"})
    return settings.model_copy(update={"data": data})


def _cost_model(settings: ExperimentSettings, data: CellData) -> ModelRecipe:
    """Return the recipe of a cost model: the reward model's sizes, safety's pairs as they are."""
    like = _reward_model(_honest(settings), data.world.chat, data.safety)
    return replace(like, id="cost_model", kind=ModelKind.COST)


def _summary_model(
    settings: ExperimentSettings, policy: Model, data: CellData
) -> ModelRecipe | None:
    if not FORMATS[settings.data.name].is_harmless_task:
        return None
    return _reward_model(_honest(settings), policy, data)


def _judge(settings: ExperimentSettings, data: CellData) -> Model:
    """Return the judge that is reported: on a trunk, a seed and a half of the rows of its own."""
    judge = settings.evaluation.judge
    like = _judge_of(judge, settings, data, half=JUDGE_HALVES["judge"], seed=MODEL_SEED + 1)
    if isinstance(like, str) or judge.path is not None:
        return like
    return replace(like, start=data.world.other_base)


def _second_judge(settings: ExperimentSettings, data: CellData) -> Model | None:
    judge = settings.evaluation.judges.get("second_judge")
    if judge is None:
        return None
    like = _judge_of(judge, settings, data, half=JUDGE_HALVES["second_judge"], seed=MODEL_SEED)
    return like if isinstance(like, str) else replace(like, id="second_judge")


def _judge_of(
    judge: JudgeSettings, settings: ExperimentSettings, data: CellData, *, half: int, seed: int
) -> Model:
    if judge.trained and judge.path is not None:
        return judge.path
    like = _scorer(
        "judge",
        ModelKind.JUDGE,
        data.world,
        judge,
        Rows(
            kind=RowKind.JUDGE_ROWS,
            data_key=data.safety.key,
            settings={
                "num_rows": judge.num_rows,
                "empty_frac": judge.empty_frac,
                "random_frac": judge.random_frac,
                "hard_frac": judge.hard_frac,
                "half": half,
                "seed": seed,
            },
        ),
        num_rows=judge.num_rows,
        dtype=settings.model.dtype,
    )
    return replace(like, seed=seed)


def _scorer(
    name: str,
    kind: ModelKind,
    world: WorldModels,
    job: RewardModelSettings | JudgeSettings,
    rows: Rows,
    *,
    num_rows: int,
    dtype: str,
    ranked_by: Model | None = None,
) -> ModelRecipe:
    """Return the recipe of a scoring model on the embedded base model or on a trunk of one's own.

    On a trunk of one's own it learns in ``dtype``, on the embedded one as that did.
    """
    is_embedded = job.path is None
    return ModelRecipe(
        id=name,
        kind=kind,
        start=job.path or world.base,
        tokenizer=job.path or world.base.tokenizer,
        tokenizer_key=job.path or world.base.tokenizer_key,
        rows=rows,
        job=JobSettings(
            num_steps=num_rows * job.num_epochs // job.batch_size,
            batch_size=job.batch_size,
            learning_rate=job.learning_rate,
            max_tokens=job.max_tokens,
            dtype=EMBEDDED_DTYPE if is_embedded else dtype,
            rounded=is_embedded,
        ),
        seed=MODEL_SEED,
        ranked_by=ranked_by,
    )
