"""A group of ranks that the cluster has no room for any more."""

import time
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.campaign.ranks import MAX_STARTS, Work, run_work
from rpa_ray.config import ClusterSettings

START_S = 3.0

pytestmark = pytest.mark.timeout(300)


def test_ranks_without_room_end_with_what_they_asked_for(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_S))
    nobody: Any = None
    work = Work(
        group=0,
        jobs={},
        queue=nobody,
        pools=None,
        cache=tmp_path,
        cluster=ClusterSettings(num_ranks=2, cpus_per_rank=64.0),
        num_model_threads=1,
    )
    begun = time.monotonic()
    cause, _, rest = run_work(work, storage=tmp_path).partition("\n")
    assert cause.startswith("The worker group startup timed out") and rest
    assert "asked for 2 x {'CPU': 64.0}, got node 0: " in cause
    assert cause.endswith("CPUs and 0 GPUs free")
    assert MAX_STARTS * START_S <= time.monotonic() - begun < 120.0
