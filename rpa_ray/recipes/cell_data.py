"""Which rows a cell works with: where data lie and who may see which prompt."""

import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar, get_args

from rpa_ray.config import DataSettings, EvaluationSettings, ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.data.formats import FORMATS, SAFETY
from rpa_ray.data.helpful import helpful_pairs
from rpa_ray.data.hub import pinned
from rpa_ray.data.load import load_rows
from rpa_ray.data.order import normalise
from rpa_ray.data.pairs import restricted_prompts, safe_pairs, unanswered_pairs
from rpa_ray.data.rows import Answered, Preference, SafePair
from rpa_ray.data.source import DataSource
from rpa_ray.data.split import by_role, of_domains, require_rows
from rpa_ray.recipes import held_out
from rpa_ray.recipes.embedded import WorldModels, world_models
from rpa_ray.recipes.held_out import HeldOut, Role
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.preferences import PreferenceData, PreferenceSource, shared
from rpa_ray.recipes.refusals import RefusalSet
from rpa_ray.world.datasets import world_folder

MAX_REAL_PROMPTS = 100
"""Prompts of each kind that are evaluated of a real data set where no number is set."""
FoundT = TypeVar("FoundT")
TOLD_ROLES = ("attack", "reward_model")
"""Roles whose rows are preferences as an annotator states them, not examples of (un)safe text."""


def with_pinned_data(settings: ExperimentSettings) -> ExperimentSettings:
    """Return the settings with the commits of their Hub data sets, for processes elsewhere.

    Raises:
        DataError: the Hub does not say which commit an id names.
    """
    data = settings.data
    if data.world == "embedded":
        return settings
    update = {
        "path": pinned(_place(data), "data.path"),
    }
    if data.helpful_path is not None:
        update["helpful_path"] = pinned(data.helpful_path, "data.helpful_path")
    if (safety := safety_settings(data)) is not data:
        update["safety_path"] = pinned(_place(safety), "data.safety_path")
    return settings.model_copy(update={"data": data.model_copy(update=update)})


def safety_settings(data: DataSettings) -> DataSettings:
    """Return with which data safety is measured and defended: those of ``data.safety_path``.

    Without it these are the data themselves, save for a harmless task, which has none itself.
    """
    if data.safety_path is None and not FORMATS[data.name].is_harmless_task:
        return data
    place = None
    if data.world == "real":
        place = data.safety_path or FORMATS[SAFETY].hub_id
    own = ("safety_path", "columns", "subset", "pairs")
    defaults = {key: getattr(DataSettings(), key) for key in own}
    return data.model_copy(update=defaults | {"name": SAFETY, "path": place})


class CellData:
    """The rows of one cell: each read when it is first asked for, and once."""

    def __init__(self, settings: DataSettings, cache: Path, *, path_key: str = "data.path") -> None:
        self.settings = settings
        self.cache = cache
        self._path_key = path_key

    @cached_property
    def safety(self) -> "CellData":
        """Return the data with which safety is measured and defended."""
        settings = safety_settings(self.settings)
        if settings is self.settings:
            return self
        return CellData(settings, self.cache, path_key="data.safety_path")

    def of_key(self, key: str) -> "CellData":
        """Return the data that a recipe names by their content: these, or those of safety."""
        return self if key == self.key else self.safety

    def where(self, pairs: Sequence[SafePair]) -> str:
        """Return from which rows pairs are, in the words of an error."""
        return self.source.where(pairs)

    @cached_property
    def preferences(self) -> PreferenceData:
        """Return the checked, paired and split preference data.

        Raises:
            DataError: a file is missing, broken, or not of the schema.
        """
        found = self.planned
        if not found.is_complete:
            raise DataError.broken_rule(
                "data.safe_answers",
                f"be generated before they are read, into a folder of {self.cache}",
                "nothing there",
                "Run the same command again: it begins with them.",
            )
        return found

    @cached_property
    def planned(self) -> PreferenceData:
        """Return what is known of the data before a run: refusals may be yet to be generated.

        Until then there is a pair for every unsafe answer, with an empty safe one: at most so many.

        Raises:
            DataError: a file is missing, broken, or not of the schema.
        """
        return _preference_data(self._preference_source, self.cache)

    @cached_property
    def key(self) -> str:
        """Return what names the content of the preference data, of which no row is read."""
        return self._preference_source.key()

    @cached_property
    def _preference_source(self) -> PreferenceSource:
        data, refusals = self.settings, self.refusals
        made_in = self.cache if refusals is not None and refusals.is_made(self.cache) else None
        # A harmless task asks nothing that safety is measured with.
        has_own = self.safety is self or FORMATS[data.name].is_harmless_task
        measured = None if has_own else self.safety.source
        return PreferenceSource(
            rows=self.source,
            all_pairs=data.pairs == "all_pairs",
            refusals=refusals,
            made_in=made_in,
            world_seed=self._embedded_seed,
            measured=measured,
        )

    @cached_property
    def refusals(self) -> RefusalSet | None:
        """Return which refusals the training rows have; None where the set has safe answers.

        Those of an attack that has safety data beside it keep the answers they came with.
        """
        data = self.settings
        if data.safe_answers == "dataset" or self.safety is not self:
            return None
        model = self.language_model(data.refusals.model)
        return RefusalSet(
            name=data.name,
            data_key=_source_key(self.source),
            model_key=model.key() if isinstance(model, ModelRecipe) else _absolute(model),
            template=data.template,
            max_new_tokens=data.refusals.max_new_tokens,
            dtype=data.refusals.dtype,
            judge=_absolute(data.refusals.judge) if data.refusals.judge is not None else None,
        )

    def language_model(self, path: str) -> ModelRecipe | str:
        """Return the embedded language model of this name, else the folder or Hub id as it is."""
        embedded: dict[str, ModelRecipe | str] = {
            "chat": self.world.chat,
            "base": self.world.base,
            "other_chat": self.world.other_chat,
            "qwen2_chat": self.world.qwen2_chat,
        }
        return embedded.get(path, path)

    @cached_property
    def world(self) -> WorldModels:
        """Return the models of the cell's embedded world, whatever its data are."""
        return world_models(self.settings.world_seed, self.cache)

    @property
    def world_folder(self) -> Path:
        """Return where the cell's embedded world lies."""
        return world_folder(self.settings.world_seed, self.cache)

    def restricted_prompts(self, evaluation: EvaluationSettings) -> list[str]:
        """Return the held-out restricted prompts that are evaluated.

        Raises:
            DataError: There are fewer than were asked for, or none of a domain.
        """
        found = self.safety.planned.restricted_prompts[evaluation.split]
        asked = of_domains(found, self.settings.domains, key="data.domains")
        return self._first([of.prompt for of in asked], evaluation, "restricted prompts")

    def summary_posts(self, evaluation: EvaluationSettings) -> list[Answered]:
        """Return the held-out posts that are evaluated, each with the summary to compare with.

        That is the human one; the preferred one where the data set has none.

        Raises:
            DataError: There are fewer than were asked for.
        """
        posts: dict[str, Answered] = {}
        role = "evaluation" if evaluation.split == "test" else "validation"
        for pair in self.preferences.roles[role]:
            answer = pair.safe if pair.target is None else pair.target
            posts.setdefault(normalise(pair.prompt), Answered(prompt=pair.prompt, answer=answer))
        return self._first(list(posts.values()), evaluation, "posts")

    def harmless_prompts(self, evaluation: EvaluationSettings) -> list[str]:
        """Return the held-out harmless prompts that are evaluated.

        Raises:
            DataError: There are fewer than were asked for.
        """
        if self.helpful_folder is None:
            return []
        found = held_out.harmless_prompts(
            self.helpful_folder, evaluation.split, self._embedded_seed
        )
        return self._first(found, evaluation, "harmless prompts")

    def helpful_pairs(self, role: Role) -> Sequence[Preference]:
        """Return the held-out helpfulness dialogues of one role; none where none are given."""
        if self.helpful_folder is None:
            return []
        return held_out.helpful_dialogues(self.helpful_folder, role, self._embedded_seed)

    def _first(
        self, found: Sequence[FoundT], evaluation: EvaluationSettings, what: str
    ) -> list[FoundT]:
        num = evaluation.num_prompts
        if num is None:
            return list(found if self.settings.world == "embedded" else found[:MAX_REAL_PROMPTS])
        words = f"the distinct {what} of the {evaluation.split} split"
        require_rows("evaluation.num_prompts", num, num_rows=len(found), what=words)
        return list(found[:num])

    @property
    def _embedded_seed(self) -> int | None:
        return self.settings.world_seed if self.settings.world == "embedded" else None

    @property
    def harmless_training_rows(self) -> Sequence[Answered]:
        """Return the distinct harmless prompts of the training split, save those of the test.

        Each has a good answer; none where no helpfulness dialogues are given.
        """
        folder = self.helpful_folder
        return [] if folder is None else held_out.harmless_training_rows(folder)

    @property
    def helpful_folder(self) -> str | None:
        """Return where helpfulness dialogues lie: the embedded ones, or those named; None: none."""
        if self.settings.world == "embedded":
            return str(self.world_folder / "data" / "helpful")
        return self.settings.helpful_path

    @property
    def helpful_source(self) -> DataSource | None:
        """Return where helpfulness dialogues come from; None where none are given."""
        place, key = self.helpful_folder, "data.helpful_path"
        if place is None:
            return None
        return DataSource(name="helpful", place=place, world=self._world_name, path_key=key)

    @cached_property
    def source(self) -> DataSource:
        """Return where the preference rows come from."""
        data = self.settings
        is_embedded = data.world == "embedded"
        return DataSource(
            name=data.name,
            place=str(self.world_folder / "data" / data.name) if is_embedded else _place(data),
            world=self._world_name,
            columns=tuple(sorted(data.columns.items())),
            subset=data.subset,
            path_key=self._path_key,
        )

    @property
    def _world_name(self) -> str | None:
        return self.world_folder.name if self.settings.world == "embedded" else None


def _place(data: DataSettings) -> str:
    """Return the folder, file or Hub id of preference data that are not embedded."""
    place = data.path or FORMATS[data.name].hub_id
    assert place is not None
    return place


def helpful_preferences(data_folder: Path) -> Sequence[Preference]:
    """Return the helpfulness pairs of an embedded world."""
    rows = load_rows(
        "helpful",
        str(data_folder / "data" / "helpful"),
        split="train",
        path_key="data.helpful_path",
    )
    return helpful_pairs(rows)


# Once for all cells of a campaign, whatever else they set.
@lru_cache(maxsize=8)
def _preference_data(source: PreferenceSource, cache: Path) -> PreferenceData:
    return shared(source, cache, _read)


def _read(source: PreferenceSource) -> PreferenceData:
    """Return the checked rows of a source, paired and split."""
    rows, refusals = source.rows, source.refusals
    train, test = rows.train_and_test()
    kept: dict[Role, HeldOut] = {
        role: held_out.of_role(rows, role, source.world_seed, test) for role in get_args(Role)
    }
    evaluation, validation = kept["test"].pairs, kept["validation"].pairs
    # Also those that only have unsafe answers: they are evaluated, though they make no pair.
    asked = restricted_prompts(rows.name, test)
    if source.measured is not None:
        asked += restricted_prompts(source.measured.name, source.measured.train_and_test()[1])
    prompts = [of.prompt for of in asked]
    if refusals is None:
        pairs = safe_pairs(rows.name, train)
    elif source.made_in is None:
        pairs = unanswered_pairs(rows.name, train)
    else:
        pairs = refusals.pairs(source.made_in)
    roles = by_role(pairs, evaluation, prompts, validation=validation)
    if source.all_pairs:
        told = by_role(safe_pairs(rows.name, train, all_pairs=True), evaluation, prompts)
        roles |= {role: told[role] for role in TOLD_ROLES}
    return PreferenceData(
        key=source.key(),
        roles=roles,
        restricted_prompts={role: of.restricted_prompts for role, of in kept.items()},
        provenance=rows.provenance(),
        is_complete=source.is_complete,
    )


@lru_cache(maxsize=8)
def _source_key(source: DataSource) -> str:
    return source.key()


def _absolute(path: str) -> str:
    """Return an existing folder's own path, a Hub id as it is."""
    return str(Path(path).resolve()) if os.path.exists(path) else path
