import pytest
import torch
from fakes import ONE_RANK

from rpa_ray.learner.ranks import Ranks


def test_the_parts_of_all_ranks_make_up_the_batch_in_order() -> None:
    rows = list(range(6))
    parts = [Ranks(rank=r, size=3, device=torch.device("cpu")).part(rows) for r in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5]]


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused() -> None:
    rank = Ranks(rank=0, size=2, device=torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of cluster\.num_ranks \(2\), got 3\."
    ):
        rank.part([1, 2, 3])


def test_one_rank_alone_needs_no_collective() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert ONE_RANK.sum(tensor) is tensor
    assert ONE_RANK.gather_rows(tensor) is tensor
    assert ONE_RANK.broadcast("value") == "value"
    assert ONE_RANK.mean({"a": 1.0, "b_max": 2.0}) == {"a": 1.0, "b_max": 2.0}
    assert ONE_RANK.is_main
    ONE_RANK.barrier()


@pytest.mark.usefixtures("process_group")
def test_the_process_group_says_which_rank_this_is() -> None:
    ranks = Ranks.current()
    assert (ranks.rank, ranks.size) == (0, 1)
