from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from rpa_ray.weight_sync.agreement import any_rank_failed


def _agree(rank: int, rendezvous: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    answers = [any_rank_failed(failed) for failed in (False, rank == 1, True)]
    Path(folder, str(rank)).write_text(repr(answers))
    dist.destroy_process_group()


def test_all_ranks_learn_of_a_failure_of_one(tmp_path: Path) -> None:
    mp.spawn(_agree, (f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2)
    answers = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert answers == ["[False, True, True]"] * 2


def test_without_a_process_group_a_rank_answers_for_itself() -> None:
    assert any_rank_failed(True)
    assert not any_rank_failed(False)
