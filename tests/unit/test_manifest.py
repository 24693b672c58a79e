from pathlib import Path

import pytest
import torch

from rpa_ray.config import parse_tree
from rpa_ray.manifest import determinism, manifest


def test_a_manifest_names_versions_seeds_and_data(world_cache: Path) -> None:
    settings = parse_tree({"seed": 3})
    found = manifest(settings, world_cache, "rpa-ray run mine.yaml")
    assert found["command"] == "rpa-ray run mine.yaml"
    assert found["versions"]["torch"] == torch.__version__
    assert found["seeds"] == {"attack": 3, "world": 0}
    assert set(found["splits"]) >= {"attack", "defence", "evaluation"}
    assert found["determinism"] == determinism(settings)


def test_runs_on_cpus_are_promised_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = determinism(parse_tree({"cluster": {"num_ranks": 2, "zero_stage": 3}}))
    assert (found["same_bits"], found["broken_by"]) == (True, [])
    assert found["same_bits_need"]["num_ranks"] == 2
    assert found["same_bits_need"]["zero_stage"] == 3


@pytest.mark.parametrize("key", ["gpus_per_rank", "gpus_per_rollout_worker"])
def test_what_breaks_the_promise_on_gpus_is_named(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = determinism(parse_tree({"cluster": {key: 1.0}}))
    assert found["same_bits"] is False
    assert any("atomics" in reason for reason in found["broken_by"])
