import pytest

from rpa_ray.cluster.placement import place
from rpa_ray.config import ClusterSettings, ConfigError


def cluster(
    ranks: int, engines: int, scorers: int, *gpus: float, cells: int = 1
) -> ClusterSettings:
    """Return a cluster of so many processes, each with a hundredth of a CPU, and their GPUs."""
    of_rank, of_engine, of_scorer = gpus
    return ClusterSettings(
        num_ranks=ranks,
        num_rollout_workers=engines,
        num_scorer_workers=scorers,
        gpus_per_rank=of_rank,
        gpus_per_rollout_worker=of_engine,
        gpus_per_scorer_worker=of_scorer,
        cpus_per_rank=0.01,
        cpus_per_rollout_worker=0.01,
        cpus_per_scorer_worker=0.01,
        parallel_cells=cells,
    )


def places(
    settings: ClusterSettings, *gpus_of_nodes: int
) -> list[tuple[str, int, tuple[int, ...]]]:
    nodes = [{"CPU": 1.0, "GPU": float(gpus)} for gpus in gpus_of_nodes]
    found = place(settings, nodes, "the machines", settings.parallel_cells or 1)
    return [(placed.worker.kind.partition("_")[0], placed.node, placed.gpus) for placed in found]


def test_workers_of_several_gpus_come_first_and_lie_on_one_node() -> None:
    assert places(cluster(2, 1, 1, 1, 2, 0), 1, 3) == [
        ("rollout", 1, (0, 1)),
        ("rank", 0, (0,)),
        ("rank", 1, (2,)),
        ("scorer", 0, ()),
    ]


def test_parts_of_a_gpu_are_shared_within_a_cell() -> None:
    assert places(cluster(1, 1, 1, 0.5, 0.4, 0.1, cells=2), 2) == [
        ("rank", 0, (0,)),
        ("rollout", 0, (0,)),
        ("scorer", 0, (0,)),
        ("rank", 0, (1,)),
        ("rollout", 0, (1,)),
        ("scorer", 0, (1,)),
    ]


def test_cells_that_leave_no_room_one_after_the_other_are_placed_by_size() -> None:
    # By cells the engine of the first would lie where the rank of the second has to.
    found = places(cluster(1, 1, 1, 3, 1, 0, cells=2), 3, 3, 1, 1)
    assert [place for place in found if place[0] == "rank"] == [
        ("rank", 0, (0, 1, 2)),
        ("rank", 1, (0, 1, 2)),
    ]
    assert [place[1] for place in found if place[0] == "rollout"] == [2, 3]


def test_what_fits_by_the_sum_but_on_no_nodes_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        places(cluster(2, 1, 1, 2, 2, 0), 3, 3)
    assert str(caught.value) == (
        "cluster must ask for workers that fit the nodes of the machines side by side, each on one "
        "node (1 CPUs and 3 GPUs, 1 CPUs and 3 GPUs), got '2 ranks of 0.01 CPUs and 2 GPUs, "
        "1 rollout_workers of 0.01 CPUs and 2 GPUs, 1 scorer_workers of 0.01 CPUs and 0 GPUs'. "
        "Take smaller or fewer workers, fewer parallel_cells, or larger nodes."
    )


def test_a_worker_larger_than_every_node_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^cluster.gpus_per_rank must be what one node of the"):
        places(cluster(1, 1, 1, 4, 0, 0), 2, 2)
    settings = cluster(1, 1, 1, 1, 0, 0).model_copy(update={"cpus_per_scorer_worker": 1.5})
    with pytest.raises(ConfigError, match=r"^cluster.cpus_per_scorer_worker must be what one node"):
        places(settings, 2, 2)
