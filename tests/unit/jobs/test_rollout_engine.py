from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rpa_ray.actors.engine import EngineConfig, llm_arguments
from rpa_ray.config import ClusterSettings
from rpa_ray.config.cluster import ENGINE_FRAC
from rpa_ray.jobs.workers import rollout_engine
from rpa_ray.plan.memory import transfer

COLOCATED = {"layout": "colocated", "num_ranks": 2}


def engine(**cluster: Any) -> EngineConfig:
    """Return the engine of a cluster."""
    model: Any = SimpleNamespace(policy=SimpleNamespace(config=SimpleNamespace()))
    settings = ClusterSettings.model_validate(cluster)
    return rollout_engine("folder", model, dtype="bfloat16", cluster=settings)


@pytest.mark.parametrize(("gpus", "span"), [(0.0, 1), (1.0, 1), (4.0, 4)])
def test_an_engine_spans_the_gpus_that_are_set_aside_for_it(gpus: float, span: int) -> None:
    assert engine(gpus_per_rank=1, gpus_per_rollout_worker=gpus).tensor_parallel_size == span


def test_an_engine_has_as_many_gpus_set_aside_as_it_is_asked_to_span() -> None:
    cluster = ClusterSettings.model_validate({"engine": {"tensor_parallel_size": 2}})
    assert cluster.gpus_per_rollout_worker == 2
    assert engine(engine={"tensor_parallel_size": 2}).tensor_parallel_size == 2


@pytest.mark.parametrize(
    ("cluster", "backend"),
    [
        ({}, "object_store"),
        ({"gpus_per_rank": 1}, "object_store"),  # engines on CPUs
        ({"gpus_per_rank": 1, "gpus_per_rollout_worker": 1}, "nccl"),
        ({"gpus_per_rank": 1, "gpus_per_rollout_worker": 2}, "nccl"),
        (COLOCATED, "ipc"),
        ({"layout": "per_gpu"}, "ipc"),
        (COLOCATED | {"gpus_per_rank": 0}, "object_store"),
    ],
)
def test_where_engines_lie_decides_how_weights_travel_in_run_and_plan(
    cluster: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine(**cluster).backend == backend
    assert transfer(ClusterSettings.model_validate(cluster)) == backend


def test_what_is_asked_of_an_engine_comes_to_vllm_under_its_names() -> None:
    from vllm.engine.arg_utils import EngineArgs

    asked = {"gpu_memory_utilization": 0.4, "max_num_seqs": 32, "enforce_eager": True}
    config = engine(gpus_per_rollout_worker=2, engine=asked)
    arguments = llm_arguments(config, has_gpu=True)
    assert arguments.keys() <= EngineArgs.__dataclass_fields__.keys()
    assert asked.items() <= arguments.items()
    assert (arguments["tensor_parallel_size"], arguments["distributed_executor_backend"]) == (
        2,
        "mp",
    )


@pytest.mark.parametrize(
    ("has_gpu", "eager", "num_seqs"), [(True, False, None), (False, True, 256)]
)
def test_what_is_not_asked_follows_from_the_hardware(
    has_gpu: bool, eager: bool, num_seqs: int | None
) -> None:
    arguments = llm_arguments(engine(), has_gpu=has_gpu)
    assert arguments["enforce_eager"] is eager
    assert arguments["max_num_seqs"] == num_seqs
    assert arguments["gpu_memory_utilization"] == ENGINE_FRAC
    assert arguments["distributed_executor_backend"] is None
