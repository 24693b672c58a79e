from typing import Any

import pytest

from rpa_ray.config import ClusterSettings, ConfigError
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.layout import check_layout


def refused(**cluster: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_layout(parse_tree({"cluster": cluster}))
    return str(caught.value)


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        {"num_ranks": 2, "gpus_per_rank": 1, "gpus_per_rollout_worker": 2},
        {"gpus_per_rank": 1, "gpus_per_rollout_worker": 1, "gpus_per_scorer_worker": 0.5},
        {"gpus_per_rank": 1, "engine": {"tensor_parallel_size": 4}},
        {"layout": "colocated", "num_ranks": 8},
        {"layout": "colocated", "num_ranks": 8, "num_rollout_workers": 8},
        {"layout": "colocated", "gpus_per_rank": 0},
        {"layout": "per_gpu", "parallel_cells": 4},
    ],
)
def test_layouts_that_can_be(cluster: dict[str, Any]) -> None:
    settings = parse_tree({"cluster": cluster})
    check_layout(settings)
    # What is written into a run folder is read back.
    assert ClusterSettings.model_validate(settings.cluster.model_dump()) == settings.cluster


def test_numbers_of_workers_and_gpus_follow_from_the_ranks() -> None:
    cluster = parse_tree({"cluster": {"layout": "colocated", "num_ranks": 8}}).cluster
    assert (cluster.num_rollout_workers, cluster.num_scorer_workers) == (8, 8)
    assert (cluster.gpus_per_rank, cluster.gpus_per_rollout_worker) == (1, 0)
    assert cluster.gpus_of("scorer_worker") == 1


def test_a_number_that_the_layout_does_not_have_is_refused() -> None:
    assert refused(layout="colocated", num_ranks=8, num_rollout_workers=3) == (
        "cluster.num_rollout_workers must be 8 with cluster.layout: colocated, where each of 8 "
        "ranks has an engine and a scorer on its own whole GPU, got 3. Leave it out, or set "
        "cluster.layout: apart."
    )


@pytest.mark.parametrize(
    ("key", "cluster"),
    [
        ("gpus_per_rank", {"layout": "colocated", "gpus_per_rank": 0.5}),
        ("gpus_per_rollout_worker", {"layout": "per_gpu", "gpus_per_rollout_worker": 0.4}),
        ("num_scorer_workers", {"layout": "per_gpu", "num_scorer_workers": 2}),
        ("num_ranks", {"layout": "per_gpu", "num_ranks": 2}),
        (
            "engine.tensor_parallel_size",
            {"layout": "per_gpu", "engine": {"tensor_parallel_size": 2}},
        ),
        ("gpus_per_rank", {"num_ranks": 2, "gpus_per_rank": 0.5}),
        ("gpus_per_rollout_worker", {"gpus_per_rollout_worker": 0.4}),
        (
            "engine.tensor_parallel_size",
            {"gpus_per_rollout_worker": 1, "engine": {"tensor_parallel_size": 2}},
        ),
    ],
)
def test_settings_that_contradict_a_layout_are_refused(key: str, cluster: dict[str, Any]) -> None:
    told = refused(**cluster)
    assert told.startswith(f"cluster.{key} must be ")
    assert "et cluster.layout: " in told
