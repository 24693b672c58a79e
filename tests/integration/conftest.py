"""One campaign for all tests of cells; a Ray cluster, an engine, and small random models for it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from command_line import run_campaign
from transformers import LlamaConfig, LlamaForCausalLM
from xdist.scheduler import LoadScopeScheduling

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.pools import RolloutPool, create_rollout_pool
from rpa_ray.cluster.hardware import native_dtype

MAX_MODEL_LEN = 96
GROUPS = {
    "grid": ("test_attacks", "test_defences", "test_own_preferences"),
    "workers": (
        "test_chat_model",
        "test_pushes",
        "test_rollout",
        "test_sampled_hardening",
        "test_scoring",
        "test_served_models",
        "test_weight_sync",
    ),
}
"""Modules that share a campaign or a cluster: one process runs them."""
LONGEST_FIRST = (
    "test_survival",
    "test_zero_ranks",
    "test_ray_jobs",
    "workers",
    "test_harden",
    "test_search",
    "test_sweep",
)
"""The order in which two processes take groups and modules; then the others."""
CONFIGS = Path(__file__).parents[2] / "configs"


class Grid:
    """The cells of a campaign, by the module that asked for them and their name there."""

    def __init__(self, output: Path, records: dict[tuple[str, str], dict[str, Any]]) -> None:
        self.output = output
        self._records = records

    def records(self, module: str) -> dict[str, dict[str, Any]]:
        """Return the summary records of a module's cells by their name."""
        return {name: r for (owner, name), r in self._records.items() if owner == module}

    def runs(self, module: str) -> dict[str, Path]:
        """Return the run folders of a module's cells by their name."""
        return {name: self.output / r["run"] for name, r in self.records(module).items()}


def group_of(module: str) -> str:
    return next((name for name, modules in GROUPS.items() if module in modules), module)


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
    """Has one of pytest-xdist's processes run all tests of a group or a module."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(Path(nodeid.partition("::")[0]).stem)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if all(Path(__file__).parent in item.path.parents for item in items):
        order = {name: place for place, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(group_of(item.path.stem), len(order)))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the embedded models are made, once, by whichever test needs them first.

    RPA_RAY_TEST_CACHE names a folder that outlives the tests, which saves minutes.
    """
    kept = os.environ.get("RPA_RAY_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def grid(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Grid:
    """Return the cells of every module of this run that has some, from one campaign.

    A module has some where it has ``GRID``: a function that writes what its cells read into a
    folder and returns them by name.
    """
    modules = {item.module for item in request.session.items if hasattr(item.module, "GRID")}
    folder = tmp_path_factory.mktemp("grid")
    cells = {
        (module.__name__, name): cell
        for module in sorted(modules, key=lambda module: str(module.__name__))
        for name, cell in module.GRID(folder).items()
    }
    parts = ["model/chat.yaml", "data/beavertails_embedded.yaml", "cluster/cpu.yaml"]
    config = {
        "include": [str(CONFIGS / part) for part in parts],
        "evaluation": {"num_looks": 2, "num_prompts": 100},
        "cells": list(cells.values()),
    }
    output = run_campaign(config, "grid", cache=cache, folder=folder)
    records = json.loads((output / "summary.json").read_text())
    return Grid(output, dict(zip(cells, records, strict=True)))


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    """Return the type of weights of this machine: what runs without asking for another."""
    found: torch.dtype = getattr(torch, native_dtype(on_gpu=False).dtype)
    return found


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Return one cluster for all tests that call workers themselves."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        # A worker that is stopped does not end when it is told to: it is killed after this time.
        _system_config={"actor_graceful_shutdown_timeout_ms": 1000},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def rollout_pool(ray_cluster: None) -> RolloutPool:
    # The first call waits for the import of vLLM, which a cold disk can make minutes.
    return create_rollout_pool(1, num_cpus=0.5, time_limit_s=600.0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_llama(seed=0, dtype=dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def engine_config(model_folder: Path, dtype: torch.dtype) -> EngineConfig:
    return EngineConfig(
        model_path=str(model_folder),
        max_model_len=MAX_MODEL_LEN,
        dtype=str(dtype).removeprefix("torch."),
    )


@pytest.fixture(scope="session")
def model_a(dtype: torch.dtype) -> LlamaForCausalLM:
    return random_llama(seed=0, dtype=dtype)


@pytest.fixture(scope="session")
def model_b(dtype: torch.dtype) -> LlamaForCausalLM:
    return random_llama(seed=1, dtype=dtype)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return [[5 + i, 6, 7 * i + 8, *range(20 + i, 32 + 2 * i)] for i in range(8)]


def random_llama(*, seed: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return 0.9M random weights, large enough that logits are not flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()
