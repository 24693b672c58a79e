from pathlib import Path
from typing import Any

import pytest
import torch

from rpa_ray.config import ClusterSettings
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.ranks import Ranks

OPTIMIZER = OptimizerSettings(learning_rate=1e-3, num_steps=1)


def place_of(num_ranks: int, **cluster: Any) -> LearnerProcess:
    nobody: Any = None
    return LearnerProcess(
        ranks=Ranks(rank=0, size=num_ranks, device=torch.device("cpu")),
        rollouts=nobody,
        scorers=nobody,
        cache=Path("cache"),
        cluster=ClusterSettings(**cluster),
        progress=nobody,
    )


@pytest.mark.parametrize(("asked", "expected"), [(None, 6), (4, 4), (6, 6), (50, 6)])
def test_a_micro_batch_is_at_most_the_ranks_part(asked: int | None, expected: int) -> None:
    process = place_of(2, micro_batch_size=asked)
    settings = process.engine_settings(OPTIMIZER, batch_size=12, dtype="float32")
    assert settings.micro_batch_size == expected
    assert settings.micro_batch_tokens is None


def test_a_micro_batch_has_no_more_tokens_than_asked_for() -> None:
    process = place_of(2, micro_batch_tokens=4096)
    settings = process.engine_settings(OPTIMIZER, batch_size=12, dtype="float32")
    assert (settings.micro_batch_size, settings.micro_batch_tokens) == (6, 4096)


def test_a_batch_that_does_not_divide_over_the_ranks_has_no_engine() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of cluster\.num_ranks"):
        place_of(2).engine_settings(OPTIMIZER, batch_size=3, dtype="float32")
