from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.config import ClusterSettings
from rpa_ray.jobs.workers import rollout_engine
from rpa_ray.plan.memory import ENGINE_FRAC, transfer


def engine(gpus: float) -> tuple[EngineConfig, ClusterSettings]:
    """Return an engine of so many GPUs, and the cluster that asked for it."""
    model: Any = SimpleNamespace(policy=SimpleNamespace(config=SimpleNamespace()))
    cluster = ClusterSettings(gpus_per_rank=1.0, gpus_per_rollout_worker=gpus)
    return rollout_engine("folder", model, dtype="bfloat16", cluster=cluster), cluster


@pytest.mark.parametrize(("gpus", "span"), [(0.0, 1), (0.5, 1), (1.0, 1), (4.0, 4)])
def test_an_engine_spans_the_gpus_that_are_set_aside_for_it(gpus: float, span: int) -> None:
    assert engine(gpus)[0].tensor_parallel_size == span


@pytest.mark.parametrize("gpus", [0.5, 1.0, 2.0])
def test_a_plan_counts_with_the_share_and_the_transfer_that_engines_have(
    gpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config, cluster = engine(gpus)
    assert config.gpu_memory_utilization == ENGINE_FRAC
    assert config.backend == transfer(cluster)
