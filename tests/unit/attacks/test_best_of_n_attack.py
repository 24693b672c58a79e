import pytest
from fakes import token_batch
from pydantic import ValidationError

from rpa_ray.attacks.best_of_n import BestOfN
from rpa_ray.plugin import Need


def test_best_of_n_asks_for_a_pool_and_its_rewards_and_no_rollouts() -> None:
    assert BestOfN.needs(BestOfN.Config()) == {Need.ANSWER_POOL, Need.REWARDS}


def test_best_of_n_trains_nothing() -> None:
    attack = BestOfN(BestOfN.Config())
    assert (attack.num_batches(1000), attack.num_updates(1000)) == (0, 0)
    with pytest.raises(NotImplementedError):
        attack.num_terms(token_batch([[1, 2]]))


def test_the_published_sizes_are_the_default_beside_a_single_answer() -> None:
    config = BestOfN.Config()
    assert (config.sizes, config.pool_size) == ([1, 4, 8, 16, 32, 64, 128], 128)


def test_sizes_come_in_order_and_each_once() -> None:
    config = BestOfN.Config(pool_size=16, sizes=[16, 1, 4, 4])
    assert BestOfN(config).sizes == [1, 4, 16]


@pytest.mark.parametrize("sizes", [[0, 4], [4, 17], [-1]])
def test_a_size_that_no_pool_holds_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ValidationError, match=r"between 1 and attack.pool_size \(16\)"):
        BestOfN.Config(pool_size=16, sizes=sizes)


def test_a_pool_smaller_than_the_default_sizes_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"between 1 and attack.pool_size \(16\)"):
        BestOfN.Config(pool_size=16)


def test_at_least_one_size_is_reported() -> None:
    with pytest.raises(ValidationError):
        BestOfN.Config(sizes=[])
