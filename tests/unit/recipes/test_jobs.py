from pathlib import Path

from rpa_ray.plan import parse_tree
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.recipes.to_make import Cell, ModelJob, plan_jobs


def cell(name: str, attack: str) -> Cell:
    return Cell(name=name, settings=parse_tree({"attack": attack}), folder=Path(name))


def ids(names: list[str]) -> list[str]:
    return [name.removeprefix("model ").rpartition("-")[0] for name in names]


def test_models_come_before_cells_and_each_is_made_once(world_cache: Path) -> None:
    jobs, needs = plan_jobs([cell("a", "none"), cell("b", "ppo")], CampaignInputs(world_cache))
    assert list(jobs)[-2:] == ["a", "b"]
    assert all(isinstance(job, ModelJob) for job in list(jobs.values())[:-2])
    assert sorted(ids(list(jobs)[:-2])) == sorted(
        [
            *("base", "other_base", "chat", "judge", "second_judge", "perplexity", "helpfulness"),
            "reward_model-rho1",
        ]
    )
    assert list(jobs) == list(needs)
    assert all(job.name == name for name, job in jobs.items())


def test_a_model_needs_what_it_starts_from_and_a_cell_all_it_uses(world_cache: Path) -> None:
    _, needs = plan_jobs([cell("a", "none"), cell("b", "ppo")], CampaignInputs(world_cache))
    of = {ids([name])[0]: ids(found) for name, found in needs.items() if name not in "ab"}
    assert of["base"] == of["other_base"] == of["perplexity"] == []
    # The judge that is reported begins with other weights than the model and the reward model.
    assert of["judge"] == ["other_base"]
    assert (
        of["chat"] == of["second_judge"] == of["helpfulness"] == of["reward_model-rho1"] == ["base"]
    )
    assert "reward_model-rho1" not in ids(needs["a"])
    assert set(ids(needs["b"])) - set(ids(needs["a"])) == {"reward_model-rho1"}
    assert {"base", "chat", "judge", "second_judge"} <= set(ids(needs["a"]))


def test_what_is_in_the_cache_is_neither_made_nor_waited_for(
    world_cache: Path, tmp_path: Path
) -> None:
    jobs, _ = plan_jobs([cell("b", "ppo")], CampaignInputs(world_cache))
    made = []
    for job in jobs.values():
        if isinstance(job, ModelJob) and job.recipe.id in ("base", "judge"):
            made.append(job.recipe.folder(world_cache))
            made[-1].mkdir()
            (made[-1] / "config.json").touch()
    try:
        jobs, needs = plan_jobs([cell("b", "ppo")], CampaignInputs(world_cache))
        assert not {"base", "judge"} & set(ids([name for name in jobs if name != "b"]))
        assert all(found == [] for name, found in needs.items() if name != "b")
        assert not {"base", "judge"} & set(ids(needs["b"]))
    finally:
        for folder in made:
            (folder / "config.json").unlink()
            folder.rmdir()
