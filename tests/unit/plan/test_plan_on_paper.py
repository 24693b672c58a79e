"""Plans for machines that are not here, of models that are not here."""

import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from rpa_ray.config import ConfigError
from rpa_ray.data import hub_model
from rpa_ray.data.hub import is_offline
from rpa_ray.plan import load_config, with_native_dtype
from rpa_ray.plan.checks.gpus import CellMemory, cell_memory
from rpa_ray.plan.checks.problems import Refused
from rpa_ray.plan.files import CLUSTERS
from rpa_ray.plan.preflight import checked, hub_if_in_reach, planned
from rpa_ray.recipes.cell_models import CellInputs

PAPER = CLUSTERS.parent / "paper"
CONFIGS = sorted(PAPER.glob("*.yaml"))
# Of a part of a config, the cluster that it needs: a batch of few prompts has one rank, TAR ZeRO 3.
NEEDED = {"few_prompts.yaml": "8x1_lora", "base_with_tar.yaml": "8xh100_apart_zero3"}
OTHER_CLUSTERS = {
    path.stem: cluster
    for path in CONFIGS
    for part, cluster in NEEDED.items()
    if part in path.read_text()
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def printed(
    config: Path, cache: Path, *overrides: str, cluster: str | None = None, on_paper: bool = True
) -> str:
    """Return what `rpa-ray plan --scale paper` prints, in lines as long as they are."""
    loaded = with_native_dtype(load_config(config, overrides, "paper", cluster), "bfloat16")
    console = Console(file=io.StringIO(), width=200)
    hub: AbstractContextManager[None] = hub_if_in_reach(loaded) if on_paper else nullcontext()
    with hub:
        loaded, inputs, unasked = checked(loaded, cache, cache, console, on_paper=on_paper)
        planned(loaded, cache, inputs, console, unasked)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("own_cluster", [True, False], ids=["own", "named"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_table_of_the_papers_is_planned_without_gpus_and_hub(
    config: Path, own_cluster: bool, own_cache: Path
) -> None:
    cluster = OTHER_CLUSTERS.get(config.stem, "8xh100_apart")
    text = printed(config, own_cache, cluster=None if own_cluster else cluster)
    assert re.search("not checked: Hub out of reach: .*meta-llama/Llama-2-7b-chat-hf", text)
    for line in ("GPU of a rank", "GPU of a rollout worker", "GPU of a scorer worker"):
        assert line in text
    assert "node 0, GPU 0 of 79.6 GiB: " in text


def test_the_largest_cell_is_told_by_part(own_cache: Path) -> None:
    text = printed(PAPER / "table10.yaml", own_cache, "data.num_samples=2000")
    assert (
        "GPU of a rank with ppo kl_coefficient kl_coef=0.001: 59.9 GiB (context 1.0, weights 12.6, "
        "gradients 3.1, masters 18.8, frozen copies 12.6, buckets 1.9, activations 1.4, head 0.1, "
        "optimizer step 6.0, push 2.4)"
    ) in text
    assert (
        "a checkpoint: 87.9 GiB on disk, two at a time; main memory while models are loaded: "
        "25.1 GiB a rank"
    ) in text


@pytest.mark.parametrize("hidden", ["sft", "ppo"])
def test_a_cell_without_known_scorers_hides_none_of_another(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    def without_scorers(inputs: CellInputs) -> CellMemory | None:
        found = cell_memory(inputs)
        if found is None or inputs.settings.attack.name == hidden:
            return found and replace(found, gpu={"rank": found.gpu["rank"]})
        return found

    monkeypatch.setattr("rpa_ray.plan.table.cell_memory", without_scorers)
    assert "GPU of a scorer worker with " in printed(PAPER / "table3.yaml", own_cache)


def refusal(own_cache: Path, *overrides: str, config: str = "table10", **options: bool) -> str:
    with pytest.raises((ConfigError, Refused)) as caught:
        printed(PAPER / f"{config}.yaml", own_cache, *overrides, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_all_weights_on_one_rank_do_not_fit(own_cache: Path) -> None:
    told = refusal(own_cache, "cluster.num_ranks=1")
    assert told.startswith(
        "cluster must leave room on every GPU, of whose 79.6 GiB 78.0 can be used, got '154.0 GiB "
        "on one (rank: context 1.0, weights 12.6, gradients 12.6, masters 75.3, frozen copies "
        "12.6, buckets 1.9, activations 1.4, head 0.1, optimizer step 34.3, push 2.4)'. "
        "Take adapters (attack.lora: {rank: 16}),"
    )


def test_copies_that_an_offline_defence_keeps_count_while_it_hardens(own_cache: Path) -> None:
    # Five of 4 x 6,738,415,616 / 4 bytes: all ranks share masters and gradients under ZeRO-2 too.
    told = refusal(own_cache, "cluster.zero_stage=2", config="table4")
    assert (
        "cluster must leave room on every GPU, of whose 79.6 GiB 78.0 can be used, got '88.9 GiB "
        "on one (hardening rank: context 1.0, weights 12.6, gradients 3.1, masters 18.8, frozen "
        "copies 12.6, buckets 1.9, activations 3.6, head 0.2, optimizer step 3.8, defence 31.4)'. "
        "Take more ranks, cluster.zero_stage: 3"
    ) in told
    text = printed(PAPER / "table4.yaml", own_cache)
    assert "GPU of a hardening rank with " in text
    assert "live layers 1.9, buckets 1.9, activations 3.6, head 0.2, defence 31.4)" in text


def test_an_engine_that_does_not_fit_its_share_is_refused(own_cache: Path) -> None:
    told = refusal(own_cache, "cluster.machines.gib_per_gpu=16", "cluster.num_ranks=1")
    assert "cluster must leave room on every GPU, of whose 16 GiB" in told


def test_all_weights_beside_an_engine_on_one_gpu_are_refused(own_cache: Path) -> None:
    told = refusal(own_cache, "attack.lora=null", config="few_prompts")
    assert "rank: context 1.0, weights 12.6, gradients 12.6, masters 75.3" in told
    assert "; rollout worker: weights 12." in told
    assert "Take adapters (attack.lora: {rank: 16})" in told


@pytest.mark.parametrize(
    ("config", "cluster", "lines"),
    [
        (
            "table10",
            None,
            [
                "node 0, GPU 0 of 79.6 GiB: rank 0 59.9 GiB",
                "node 0, GPU 6 of 79.6 GiB: rollout worker 2 71.6 GiB",
                "node 0, GPU 7 of 79.6 GiB: scorer worker 0 5.7 GiB",
            ],
        ),
        # 0.98 x 79.6 - 16.6 - 5.7 GiB are the engine's, of the cell with least left
        (
            "few_prompts",
            None,
            ["node 0, GPU 7 of 79.6 GiB: cell 7 rank 0 ", "cell 7 rollout worker 0 55.7 GiB"],
        ),
        ("table10", "8xh100_colocated", ["node 0, GPU 5 of 79.6 GiB: rank 5 ", "scorer worker 5 "]),
        ("table10", "2x8xh100", ["node 0, GPU 7 of 79.6 GiB: rank 7 ", "node 1, GPU 7 of 79.6"]),
    ],
)
def test_a_plan_says_what_lies_on_each_gpu(
    config: str, cluster: str | None, lines: list[str], own_cache: Path
) -> None:
    text = printed(PAPER / f"{config}.yaml", own_cache, cluster=cluster)
    for line in lines:
        assert line in text


def test_main_memory_in_which_ranks_load_models_is_bounded(own_cache: Path) -> None:
    # Eight processes of 2 GiB and 4 ranks x 25.1 GiB
    told = refusal(own_cache, "cluster.machines.gib_per_node=100")
    assert told.startswith(
        "cluster must ask for at most the 100 GiB main memory of a node, got '116"
    )


def test_a_worker_larger_than_a_node_is_refused_on_paper(own_cache: Path) -> None:
    nodes = "cluster.machines={num_nodes: 8, gpus_per_node: 1, cpus_per_node: 99, gib_per_node: 99}"
    told = refusal(
        own_cache, nodes, "cluster.num_rollout_workers=1", "cluster.gpus_per_rollout_worker=2"
    )
    assert told.startswith(
        "cluster.gpus_per_rollout_worker must be what one node of cluster.machines has (99 CPUs "
        "and 1 GPUs), got '2'"
    )


def test_a_model_of_unknown_sizes_is_refused_where_the_hub_is_out_of_reach(own_cache: Path) -> None:
    told = refusal(own_cache, "model.path=owner/name")
    assert "model.path must be a folder with a model, or a Hub id that can be read" in told


def test_data_that_nobody_named_are_refused(own_cache: Path) -> None:
    told = refusal(own_cache, "data.name=preferences", "data.path=null")
    assert "data.path must be given where data.name is preferences" in told


def test_a_run_needs_the_hub_and_the_machine(own_cache: Path) -> None:
    told = refusal(own_cache, on_paper=False)
    for broken in (
        "model.path must be a folder with a model, or a Hub id that can be read",
        "data.path must be a Hub data set that can be read",
        "of this machine, got",
    ):
        assert broken in told


def test_a_hub_that_does_not_answer_is_asked_once(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def silent(repo: str, revision: str | None) -> str:
        asked.append(repo)
        raise TimeoutError("no answer within 2.5 s")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_model, "_commit", silent)
    assert "not checked: Hub out of reach" in printed(PAPER / "table11.yaml", own_cache)
    assert len(asked) == 1
    assert not is_offline()
    assert not constants.is_offline_mode()


@pytest.fixture
def settings_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mine.yaml"
    path.write_text("attack: sft\ncluster: {num_ranks: 2, timeout_s: 5}\n")
    yield path


def test_a_named_cluster_replaces_that_of_the_config_and_overrides_come_last(
    settings_file: Path,
) -> None:
    (cell,) = load_config(
        settings_file, ["cluster.num_ranks=8"], cluster="8xh100_apart"
    ).campaign.cells
    assert (cell.cluster.num_ranks, cell.cluster.num_rollout_workers) == (8, 3)
    assert cell.cluster.timeout_s == 600
    own = settings_file.with_name("own.yaml")
    own.write_text("cluster: {num_ranks: 4}\n")
    (cell,) = load_config(settings_file, cluster=str(own)).campaign.cells
    assert cell.cluster.model_dump(exclude_defaults=True) == {"num_ranks": 4}


def test_a_cluster_that_nobody_knows_is_refused_with_those_that_there_are(
    settings_file: Path,
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(settings_file, cluster="8xh100")
    assert str(caught.value) == (
        "--cluster must name a file of configs/cluster (1gpu_lora, 2x8xh100, 8x1_lora, "
        "8xh100_apart, 8xh100_apart_zero3, 8xh100_colocated, cpu) or a path, "
        "got '8xh100'. Did you mean '2x8xh100'?"
    )


def test_a_cluster_file_with_more_in_it_and_a_cell_with_a_cluster_are_refused(
    settings_file: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"--cluster must name a file with `cluster` alone"):
        load_config(settings_file, cluster=str(settings_file))
    campaign = settings_file.with_name("campaign.yaml")
    campaign.write_text("kind: campaign\nattack: sft\ncells: [{cluster: {num_ranks: 2}}]\n")
    with pytest.raises(ConfigError, match=r"--cluster must name a key that no cell sets \(cells"):
        load_config(campaign, cluster="cpu")
